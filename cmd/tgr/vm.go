package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vmapi"
)

func newVMCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "vm", Short: "Look at and use machines of the VM management API",
		Long: `Look at and use machines of the VM management API, which tgr vmd serves.

The address is FIRECRACKER_API_URL, or http://` + defaultAPI + `; the token FIRECRACKER_AUTH_TOKEN. On the daemon's own
host, who may read its key needs no token.`,
	}
	cmd.AddCommand(newVMListCmd(), newVMCreateCmd(), newVMExecCmd(), newVMShellCmd(), newVMSnapshotCmd(), newVMRollbackCmd(), newVMRmCmd(), newVMHistoryCmd())
	return cmd
}

// vmVerb makes a verb of one that is given a client.
func vmVerb(use, short string, args cobra.PositionalArgs, run func(*cobra.Command, *vmapi.Client, []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		c, err := loadConfig(cmd.Flags())
		if err != nil {
			return err
		}
		client, err := apiClient(c, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return explain(run(cmd, client, args))
	}}
	configFlags(cmd, "vm-api-url", "data-dir")
	return cmd
}

func newVMListCmd() *cobra.Command {
	var asJSON bool
	cmd := vmVerb("list", "List the machines, the newest first", cobra.NoArgs, func(cmd *cobra.Command, c *vmapi.Client, _ []string) error {
		l, err := c.List(cmd.Context())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if asJSON {
			return printJSON(out, l)
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tSTATE\tAGE\tISOLATION\tNAME\tREASON")
		for _, v := range l.VMs {
			state := string(v.State)
			if state == "" {
				state = v.Status
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, state, time.Since(v.CreatedAt).Round(time.Second), v.Isolation, v.Name, firstLine(v.Reason))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%d of %d machines are in use\n", l.Usage.CurrentVMs, l.Usage.MaxVMs)
		return err
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// firstLine keeps a table a table.
func firstLine(s string) string {
	for i, r := range s {
		if r < ' ' {
			return s[:i]
		}
	}
	return s
}

func newVMCreateCmd() *cobra.Command {
	req := vmapi.CreateRequest{WaitSeconds: 300}
	var lease time.Duration
	cmd := vmVerb("create", "Make a machine, wait until it is ready, and print its id", cobra.NoArgs, func(cmd *cobra.Command, c *vmapi.Client, _ []string) error {
		req.LeaseSeconds = int(lease / time.Second)
		v, err := c.Create(cmd.Context(), req, "")
		for err == nil && (v.State == vmapi.Creating || v.State == vmapi.Booting || v.State == "" && v.Status == "Creating") {
			if v, err = c.Get(cmd.Context(), v.ID, 30*time.Second); err == nil && v.State == "" {
				err = sleepFor(cmd.Context(), time.Second)
			}
		}
		if err != nil {
			return err
		}
		if v.Status != "running" && v.Status != "ready" {
			return fmt.Errorf("%s is %s: %s", v.ID, v.Status, v.Reason)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), v.ID)
		return err
	})
	fs := cmd.Flags()
	fs.StringVar(&req.Name, "name", "", "a name for people")
	fs.StringArrayVar(&req.Labels, "label", nil, "label of the kind of machine, as in runs-on; may be repeated")
	fs.IntVar(&req.VCPUs, "vcpus", 0, "virtual processors; 0: the kind's")
	fs.IntVar(&req.MemoryMB, "memory", 0, "memory, MiB; 0: the kind's")
	fs.DurationVar(&lease, "lease", 0, "keep the machine for this long, whether it is used or not; 0: until nothing ran for an hour")
	return cmd
}

func sleepFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func newVMExecCmd() *cobra.Command {
	var o struct {
		dir, user string
		env       []string
		stdin     bool
	}
	cmd := vmVerb("exec ID -- COMMAND [ARGUMENT...]", "Run a command in a machine; the exit status is the command's", cobra.MinimumNArgs(2),
		func(cmd *cobra.Command, c *vmapi.Client, args []string) error {
			m, err := c.Open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			run := commandIn(m, args[1:])
			if o.dir != "" {
				run.Dir = o.dir
			}
			if cmd.Flags().Changed("user") {
				run.User = o.user
			}
			run.Env = append(run.Env, o.env...)
			if o.stdin {
				run.Stdin = cmd.InOrStdin()
			}
			run.Stderr = cmd.ErrOrStderr()
			exit, err := m.Exec(cmd.Context(), run, cmd.OutOrStdout())
			return exitOf(exit, err)
		})
	fs := cmd.Flags()
	fs.StringVar(&o.dir, "dir", "", "working directory; the machine's home, if none is given")
	fs.StringVar(&o.user, "user", "", "user to run as; that of jobs, if none is given")
	fs.StringArrayVar(&o.env, "env", nil, "one more environment variable, NAME=value; may be repeated")
	fs.BoolVarP(&o.stdin, "stdin", "i", false, "pass standard input on")
	return cmd
}

// commandIn is a command as jobs would run it.
func commandIn(m *vmapi.Machine, args []string) guest.Cmd {
	c := guest.Cmd{Args: args, Grace: 2 * time.Second, Env: []string{"PATH=" + imagePath}}
	if p := m.VM().Place; p != nil {
		c.Env, c.User, c.Dir = p.Environment(), p.User, p.HomeDir()
	}
	return c
}

// exitOf makes a command's status ours.
func exitOf(exit guest.Exit, err error) error {
	switch {
	case err != nil:
		return err
	case !exit.Started:
		return exitError{exit.Code, errors.New(exit.Message)}
	case exit.Code != 0:
		return exitError{code: exit.Code}
	}
	return nil
}

func newVMShellCmd() *cobra.Command {
	return vmVerb("shell ID", "Open a shell in a machine", cobra.ExactArgs(1), func(cmd *cobra.Command, c *vmapi.Client, args []string) error {
		m, err := c.Open(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		run := commandIn(m, []string{"bash", "-l"})
		run.ID = fmt.Sprintf("shell-%d-%d", os.Getpid(), time.Now().UnixNano())
		run.Stdin = cmd.InOrStdin()
		in, ok := run.Stdin.(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			run.Args, run.Stderr = []string{"bash"}, cmd.ErrOrStderr()
			exit, err := m.Exec(cmd.Context(), run, cmd.OutOrStdout())
			return exitOf(exit, err)
		}
		return interactive(cmd.Context(), m, run, in, cmd.OutOrStdout())
	})
}

// interactive joins this terminal to one in the machine.
func interactive(ctx context.Context, m *vmapi.Machine, run guest.Cmd, in *os.File, out io.Writer) error {
	fd := int(in.Fd())
	run.Env = append(run.Env, "TERM="+envOr("TERM", "xterm"))
	run.TTY = &guest.WindowSize{Rows: 24, Cols: 80}
	if cols, rows, err := term.GetSize(fd); err == nil {
		run.TTY = &guest.WindowSize{Rows: uint16(rows), Cols: uint16(cols)}
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	defer term.Restore(fd, old)
	sizes := make(chan os.Signal, 1)
	signal.Notify(sizes, syscall.SIGWINCH)
	defer signal.Stop(sizes)
	over, end := context.WithCancel(ctx)
	defer end()
	go func() {
		for {
			select {
			case <-over.Done():
				return
			case <-sizes:
			}
			if cols, rows, err := term.GetSize(fd); err == nil {
				m.Resize(over, run.ID, guest.WindowSize{Rows: uint16(rows), Cols: uint16(cols)}) // the next one may succeed
			}
		}
	}()
	exit, err := m.Exec(ctx, run, out)
	return exitOf(exit, err)
}

func newVMSnapshotCmd() *cobra.Command {
	var req vmapi.SnapshotRequest
	var list, asJSON bool
	cmd := vmVerb("snapshot ID", "Keep what a machine is now, and print the snapshot's id", cobra.ExactArgs(1), func(cmd *cobra.Command, c *vmapi.Client, args []string) error {
		out := cmd.OutOrStdout()
		if !list {
			s, err := c.Snapshot(cmd.Context(), args[0], req)
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(out, s)
			}
			_, err = fmt.Fprintln(out, s.SnapshotID)
			return err
		}
		l, err := c.Snapshots(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(out, l)
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, s := range l.Snapshots {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.SnapshotID, s.CreatedAt.Local().Format(time.DateTime), s.Name, s.Description)
		}
		return w.Flush()
	})
	fs := cmd.Flags()
	fs.StringVar(&req.Name, "name", "", "a name for people")
	fs.StringVar(&req.Description, "description", "", "more for people")
	fs.BoolVar(&list, "list", false, "take none, and list those that there are")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newVMRollbackCmd() *cobra.Command {
	return vmVerb("rollback ID SNAPSHOT", "Make a machine what it was; commands that run are lost", cobra.ExactArgs(2),
		func(cmd *cobra.Command, c *vmapi.Client, args []string) error {
			r, err := c.Rollback(cmd.Context(), args[0], args[1])
			if err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is what it was at %s, after %.0f ms\n", args[0], args[1], r.DurationMS)
			}
			return err
		})
}

func newVMRmCmd() *cobra.Command {
	return vmVerb("rm ID...", "Free machines", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *vmapi.Client, args []string) error {
		var errs []error
		for _, id := range args {
			errs = append(errs, c.Delete(cmd.Context(), id, ""))
		}
		return errors.Join(errs...)
	})
}

func newVMHistoryCmd() *cobra.Command {
	var limit int
	var failures, asJSON bool
	cmd := vmVerb("history ID", "List what ran in a machine, the newest first", cobra.ExactArgs(1), func(cmd *cobra.Command, c *vmapi.Client, args []string) error {
		h, err := c.History(cmd.Context(), args[0], limit, failures)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if asJSON {
			return printJSON(out, h)
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, e := range h.History {
			status := "-"
			if e.ExitCode != nil {
				status = fmt.Sprint(*e.ExitCode)
			}
			fmt.Fprintf(w, "%s\t%s\t%.0f ms\t%s\n", e.Timestamp.Local().Format(time.TimeOnly), status, e.DurationMS, firstLine(e.Command))
		}
		return w.Flush()
	})
	fs := cmd.Flags()
	fs.IntVar(&limit, "limit", 100, "how many")
	fs.BoolVar(&failures, "failures", false, "only those that failed")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
