package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/vault"
	"github.com/terraphim/tgr/web"
)

// serverVerbs adds to a command what all commands share that talk to a server.
func (v *runsVerbs) serverVerbs(cmd *cobra.Command) *cobra.Command {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return runsError{2, err} })
	cmd.PersistentFlags().StringVar(&v.server, "server", "", "the server's URL (default $TGR_SERVER, else http://127.0.0.1:3000)")
	cmd.PersistentFlags().StringVar(&v.token, "token", "", "the server's token (default $TGR_TOKEN)")
	return cmd
}

// command makes a command of so many arguments at least and at most, whose errors get their exit status.
func (v *runsVerbs) command(use, short string, least, most int, do func(context.Context, *web.Client, *cobra.Command, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < least || len(args) > most {
				return runsUsage("usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := v.client()
			if err == nil {
				err = do(cmd.Context(), c, cmd, args)
			}
			return runsFailure(err)
		},
	}
}

// scopeFlags choose where a setting counts.
type scopeFlags struct{ owner, repo, env string }

func (f *scopeFlags) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&f.repo, "repo", "R", "", "of this repository, owner/name")
	cmd.Flags().StringVarP(&f.owner, "owner", "o", "", "of all repositories of this account")
	cmd.Flags().StringVarP(&f.env, "env", "e", "", "of this environment of the repository")
	return cmd
}

func (f *scopeFlags) scope() (tgr.Scope, error) {
	switch {
	case (f.repo == "") == (f.owner == ""):
		return tgr.Scope{}, runsUsage("expected either --repo owner/name or --owner account")
	case f.owner != "" && f.env != "":
		return tgr.Scope{}, runsUsage("--env is of a repository: expected --repo owner/name")
	}
	return tgr.Scope{Owner: f.owner, Repo: f.repo, Environment: f.env}, nil
}

func newSecretCmd() *cobra.Command {
	v := &runsVerbs{}
	cmd := &cobra.Command{Use: "secret", Short: "Set, list and remove the secrets of a server",
		Long: `Set, list and remove the secrets that jobs see as ${{ secrets.NAME }}: of a repository, of one of its environments, or of
an account. The narrower scope wins. The server seals them with a key that is not in its database, and shows them to nobody.`,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	rotate := v.command("rotate", "Seal all secrets with a new key", 0, 0, func(ctx context.Context, c *web.Client, cmd *cobra.Command, _ []string) error {
		d, err := c.Rotate(ctx)
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "%s (%d)\n", d.Message, d.Count)
		}
		return err
	})
	cmd.AddCommand(v.setCmd(web.Secret), v.settingsCmd(web.Secret), v.rmCmd(web.Secret), rotate)
	return v.serverVerbs(cmd)
}

func newVarCmd() *cobra.Command {
	v := &runsVerbs{}
	cmd := &cobra.Command{Use: "var", Short: "Set, list and remove the configuration variables of a server",
		Long: "Set, list and remove what jobs see as ${{ vars.NAME }}: of a repository, of one of its environments, or of an account.",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(v.setCmd(web.Variable), v.settingsCmd(web.Variable), v.rmCmd(web.Variable))
	return v.serverVerbs(cmd)
}

func (v *runsVerbs) setCmd(kind string) *cobra.Command {
	var f scopeFlags
	var file string
	use, most := "set NAME", 1
	if kind == web.Variable {
		use, most = "set NAME [VALUE]", 2 // a secret's would be in the shell's history, and seen by everybody on the host
	}
	cmd := v.command(use, "Set a "+kind+": its value is read from standard input, a prompt, or a file", 1, most,
		func(ctx context.Context, c *web.Client, cmd *cobra.Command, args []string) error {
			scope, err := f.scope()
			if err != nil {
				return err
			}
			if name, _, pair := strings.Cut(args[0], "="); pair && kind == web.Variable {
				return runsUsage("expected the name and the value apart: tgr var set %s VALUE", name)
			} else if pair {
				return runsUsage("expected the name alone: the value of %s is read from standard input, a prompt or a file, so that it is in no history", name)
			}
			if err := vault.CheckName(args[0]); err != nil {
				return err
			}
			value := ""
			if len(args) == 2 {
				value = args[1]
			} else if value, err = readValue(cmd, file, args[0], kind == web.Secret); err != nil {
				return err
			}
			d, err := c.SetSetting(ctx, kind, web.SettingRequest{Owner: scope.Owner, Repo: scope.Repo, Environment: scope.Environment, Name: args[0], Value: value})
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), v.text(d.Message, 500))
			}
			return err
		})
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the value, as it is; - is standard input")
	return f.add(cmd)
}

// readValue reads a value: of a file as it is, of a prompt a line, of standard input all but the last line's end.
func readValue(cmd *cobra.Command, file, name string, hidden bool) (string, error) {
	const limit = vault.MaxValue + 2
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", runsError{2, err}
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, limit))
		if err != nil {
			return "", runsError{2, err}
		}
		return string(data), nil
	}
	if in, ok := cmd.InOrStdin().(*os.File); ok && file == "" && hidden && term.IsTerminal(int(in.Fd())) {
		fmt.Fprintf(cmd.ErrOrStderr(), "value of %s (not shown): ", name)
		data, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(data), err
	}
	data, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), limit))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"), nil
}

func (v *runsVerbs) settingsCmd(kind string) *cobra.Command {
	var f scopeFlags
	var asJSON bool
	cmd := v.command("list", "List the "+kind+"s of one scope", 0, 0, func(ctx context.Context, c *web.Client, cmd *cobra.Command, _ []string) error {
		scope, err := f.scope()
		if err != nil {
			return err
		}
		list, err := c.Settings(ctx, kind, scope)
		switch {
		case err != nil:
			return err
		case asJSON:
			return v.print(cmd, web.SettingList{Settings: list})
		case len(list) == 0:
			fmt.Fprintf(cmd.OutOrStdout(), "%s has no %ss of its own\n", v.text(scope.String(), 200), kind)
			return nil
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		for _, s := range list {
			fmt.Fprintf(w, "%s\t%s", v.text(s.Name, 100), s.Updated.Local().Format("2006-01-02 15:04:05"))
			if kind == web.Variable {
				fmt.Fprintf(w, "\t%s", v.text(s.Value, 100))
			}
			fmt.Fprintln(w)
		}
		return w.Flush()
	})
	cmd.Aliases = []string{"ls"}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return f.add(cmd)
}

func (v *runsVerbs) rmCmd(kind string) *cobra.Command {
	var f scopeFlags
	cmd := v.command("rm NAME", "Remove a "+kind, 1, 1, func(ctx context.Context, c *web.Client, cmd *cobra.Command, args []string) error {
		scope, err := f.scope()
		if err != nil {
			return err
		}
		d, err := c.RemoveSetting(ctx, kind, web.SettingRequest{Owner: scope.Owner, Repo: scope.Repo, Environment: scope.Environment, Name: args[0]})
		if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), v.text(d.Message, 500))
		}
		return err
	})
	return f.add(cmd)
}

func newEnvironmentCmd() *cobra.Command {
	v := &runsVerbs{}
	cmd := &cobra.Command{Use: "environment", Aliases: []string{"env"}, Short: "Say what jobs for a deployment environment wait for",
		Long: `Say what jobs wait for that have an environment: branches and tags that may use it, an approval (tgr approve), a time.
An environment that nobody has described asks for nothing.`,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(v.environmentSetCmd(), v.environmentsCmd(), v.environmentRmCmd())
	return v.serverVerbs(cmd)
}

func (v *runsVerbs) environmentSetCmd() *cobra.Command {
	var e tgr.Environment
	cmd := v.command("set NAME", "Describe an environment, in place of what was said of it before", 1, 1,
		func(ctx context.Context, c *web.Client, cmd *cobra.Command, args []string) error {
			e.Name = args[0]
			if e.Repo == "" {
				return runsUsage("expected --repo owner/name")
			}
			d, err := c.SetEnvironment(ctx, e)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), v.text(d.Message, 500))
			}
			return err
		})
	cmd.Flags().StringVarP(&e.Repo, "repo", "R", "", "of this repository, owner/name")
	cmd.Flags().StringArrayVar(&e.Branches, "branch", nil, "pattern of branches that may use it, such as main or release/*; may be repeated")
	cmd.Flags().StringArrayVar(&e.Tags, "tag", nil, "pattern of tags that may use it; may be repeated")
	cmd.Flags().BoolVar(&e.Approval, "approval", false, "somebody has to approve, for each attempt of a run")
	cmd.Flags().IntVar(&e.Wait, "wait", 0, "minutes before its jobs begin")
	return cmd
}

func (v *runsVerbs) environmentsCmd() *cobra.Command {
	var repo string
	var asJSON bool
	cmd := v.command("list", "List the environments of a repository", 0, 0, func(ctx context.Context, c *web.Client, cmd *cobra.Command, _ []string) error {
		list, err := c.Environments(ctx, repo)
		switch {
		case err != nil:
			return err
		case asJSON:
			return v.print(cmd, web.EnvironmentList{Environments: list})
		}
		for _, e := range list {
			var rules []string
			for _, p := range e.Branches {
				rules = append(rules, "branch "+p)
			}
			for _, p := range e.Tags {
				rules = append(rules, "tag "+p)
			}
			if e.Approval {
				rules = append(rules, "approval")
			}
			if e.Wait > 0 {
				rules = append(rules, fmt.Sprintf("wait %d min", e.Wait))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", v.text(e.Name, 100), v.text(cmp.Or(strings.Join(rules, ", "), "no rules"), 500))
		}
		return nil
	})
	cmd.Aliases = []string{"ls"}
	cmd.Flags().StringVarP(&repo, "repo", "R", "", "of this repository, owner/name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) environmentRmCmd() *cobra.Command {
	var repo string
	cmd := v.command("rm NAME", "Forget an environment, with its secrets and variables", 1, 1,
		func(ctx context.Context, c *web.Client, cmd *cobra.Command, args []string) error {
			d, err := c.RemoveEnvironment(ctx, repo, args[0])
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), v.text(d.Message, 500))
			}
			return err
		})
	cmd.Flags().StringVarP(&repo, "repo", "R", "", "of this repository, owner/name")
	return cmd
}

func newApproveCmd() *cobra.Command {
	v := &runsVerbs{}
	var reject bool
	var comment string
	cmd := v.command("approve RUN [ENVIRONMENT]", "Let a run go on that waits for approval, or reject it", 1, 2,
		func(ctx context.Context, c *web.Client, cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || id <= 0 {
				return runsUsage("the run is %q, and should be the number in the first column of `tgr runs list`", args[0])
			}
			a := web.ApproveRequest{Reject: reject, Comment: comment, By: os.Getenv("USER")}
			if len(args) == 2 {
				a.Environment = args[1]
			}
			got, err := c.Approve(ctx, tgr.RunID(id), a)
			return v.accepted(cmd, got, err)
		})
	cmd.Long = `Let a run go on that waits for approval: as a whole, such as one of a pull request from a fork, or its jobs for an
environment. Without a name it is what waits, if that is one thing. tgr runs show says what a run waits for.`
	cmd.Flags().BoolVar(&reject, "reject", false, "reject it: the run is cancelled, or the environment's jobs fail")
	cmd.Flags().StringVar(&comment, "comment", "", "why, for whoever asks")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return v.serverVerbs(cmd)
}
