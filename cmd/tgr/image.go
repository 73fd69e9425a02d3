package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/terraphim/tgr/image"
)

func newImageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Build and keep what the machines boot from",
		Long: "Build and keep what the machines boot from: Debian's kernel, the agent, and a root filesystem with Node.\n\n" +
			"Images are kept below the user's cache folder and are built again only where their input changed.",
	}
	cmd.AddCommand(newImageBuildCmd(), newImageListCmd(), newImageRemoveCmd(), newImageVerifyCmd(), newImagePruneCmd())
	return cmd
}

// imageStore is the store that imageFlags name.
func imageStore(cmd *cobra.Command) *image.Store {
	dir, _ := cmd.Flags().GetString("dir")
	return &image.Store{Dir: dir}
}

func imageFlags(cmd *cobra.Command) {
	cmd.Flags().String("dir", "", "folder of the images (default: $TGR_IMAGE_DIR, or in the user's cache folder)")
}

func newImageBuildCmd() *cobra.Command {
	var b image.BuildConfig
	var asJSON bool
	cmd := &cobra.Command{
		Use: "build [name]", Short: "Build an image, or what of it is out of date",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				b.Name = args[0]
			}
			if b.Agent == "" {
				var err error
				if b.Agent, err = findAgent(); err != nil {
					return usageError{err}
				}
			}
			p := newProgress(cmd.ErrOrStderr())
			b.Progress = p.step
			im, err := imageStore(cmd).Build(cmd.Context(), b)
			p.end()
			if err != nil {
				return ours(err)
			}
			defer im.Close()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), imageReport(im))
			}
			of := fmt.Sprintf("%d Debian packages", len(im.Manifest.Root.Packages))
			if root := im.Manifest.Root; root.From != "" {
				of = root.From + " (" + root.Digest + ")"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: kernel %s, %s, root %s\n", im.Name, im.Release, of, mib(im.Manifest.Root.File.Size))
			return nil
		},
	}
	imageFlags(cmd)
	cmd.Flags().StringVar(&b.Agent, "agent", "", "the agent's binary; default: tgr-guest beside tgr, or in PATH")
	cmd.Flags().StringVar(&b.Kernel, "kernel", "", "a Debian cloud kernel; default: the newest /boot/vmlinuz-*-cloud-amd64")
	cmd.Flags().StringVar(&b.From, "from", "", "make it of an OCI image: oci:REFERENCE, oci-layout:FOLDER or docker-archive:FILE")
	cmd.Flags().StringVar(&b.Mirror, "mirror", "", "Debian mirror; default: deb.debian.org")
	cmd.Flags().BoolVar(&b.Full, "full", false, "with a container engine, for container jobs, services and docker actions")
	cmd.Flags().BoolVar(&b.Force, "force", false, "build the root filesystem again, for newer packages")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// report is an image in JSON.
type report struct {
	Name     string         `json:"name"`
	Kernel   string         `json:"kernel"`
	Initrd   string         `json:"initrd"`
	Root     string         `json:"root"`
	Manifest image.Manifest `json:"manifest"`
}

func imageReport(im *image.Image) report {
	return report{im.Name, im.Kernel, im.Initrd, im.Root, im.Manifest}
}

// findAgent finds the agent's binary, which is installed beside this one.
func findAgent() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), "tgr-guest")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	if path, err := exec.LookPath("tgr-guest"); err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("there is no tgr-guest beside %s or in PATH: name it with --agent", self)
}

// ensureImage builds the default image, or what of it is out of date, and shows on out what takes longer than a moment.
func ensureImage(ctx context.Context, out io.Writer) error {
	agent, err := findAgent()
	if err != nil {
		return usageError{err}
	}
	p := newProgress(out)
	defer p.end()
	im, err := (&image.Store{}).Build(ctx, image.BuildConfig{Agent: agent, Progress: p.step})
	if err != nil {
		return err
	}
	p.step("take a snapshot of a machine, for others to be restored from", 0, 0)
	if err := takeSnapshot(ctx); err != nil {
		fmt.Fprintf(out, "machines will be booted, not restored: %v\n", err)
	}
	return im.Close()
}

func newImageListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List the images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := imageStore(cmd).List(cmd.Context())
			if err != nil {
				return ours(err)
			}
			if asJSON {
				if list == nil {
					list = []image.Listed{}
				}
				return printJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tKERNEL\tSIZE\tBUILT\tPROBLEM")
			for _, l := range list {
				built := "-"
				if !l.Built.IsZero() {
					built = l.Built.Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Name, l.Release, mib(l.Bytes), built, l.Problem)
			}
			return w.Flush()
		},
	}
	imageFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newImageRemoveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm name...", Short: "Remove images", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				errs = append(errs, imageStore(cmd).Remove(cmd.Context(), name))
			}
			if err := errors.Join(errs...); err != nil {
				return exitError{exitFailed, err}
			}
			return nil
		},
	}
	imageFlags(cmd)
	return cmd
}

func newImagePruneCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "prune", Short: "Delete what builds have left and no image needs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			freed, err := imageStore(cmd).Prune(cmd.Context())
			if err != nil {
				return ours(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "freed %s\n", mib(freed))
			return nil
		},
	}
	imageFlags(cmd)
	return cmd
}

func newImageVerifyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify [name]", Short: "Compare every byte of an image with its manifest", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := image.DefaultName
			if len(args) > 0 {
				name = args[0]
			}
			p := newProgress(cmd.ErrOrStderr())
			err := imageStore(cmd).Verify(cmd.Context(), name, p.step)
			p.end()
			if err != nil {
				return exitError{exitFailed, err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: every file is what its manifest says\n", name)
			return nil
		},
	}
	imageFlags(cmd)
	return cmd
}

// progress shows the steps of something slow: on a terminal in one line that is written over, elsewhere a line
// for each step.
type progress struct {
	out   io.Writer
	tty   bool
	start time.Time
	last  string
}

func newProgress(out io.Writer) *progress {
	f, ok := out.(*os.File)
	return &progress{out: out, tty: ok && term.IsTerminal(int(f.Fd())), start: time.Now()}
}

// step is an image.Progress.
func (p *progress) step(step string, done, total int64) {
	since := time.Since(p.start).Seconds()
	switch {
	case p.tty && total > 0:
		fmt.Fprintf(p.out, "\r\x1b[K%6.1fs %s (%d %%)", since, printable(step), 100*done/total)
	case p.tty:
		fmt.Fprintf(p.out, "\r\x1b[K%6.1fs %s", since, printable(step))
	case step != p.last:
		fmt.Fprintf(p.out, "%6.1fs %s\n", since, printable(step))
	}
	p.last = step
}

func (p *progress) end() {
	if p.tty && p.last != "" {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
