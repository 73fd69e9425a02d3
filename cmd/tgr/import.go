package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/workflow"
)

// proposedFile is what a proposal is called while it is tried.
const proposedFile = "tgr-proposed.yml"

func newImportCmd() *cobra.Command {
	var dryRun bool
	var dir, action, network string
	var inputs []string
	cmd := &cobra.Command{Use: "import [FILE | --action OWNER/NAME@REF]", Short: "Propose a workflow for a GitLab CI, CircleCI or Jenkins file, or steps for an action",
		Long: `Has your language model translate a .gitlab-ci.yml, a .circleci/config.yml or a Jenkinsfile, and prints the workflow that it
proposes. A proposal has passed the compiler, uses no secrets, no permissions and no action but actions/checkout; it is for you to
read, and nothing is written. With --dry-run it has also run, in a machine without network and secrets, on a copy of the working tree.

With --action, it prints steps to stand in the place of an action that cannot be fetched: for well-known ones what is built in,
for which no model is asked; else a script that your model proposes, which has passed the compiler and has run without secrets.

Exit status: 1 if the dry run failed (the proposal is printed all the same, that of an action on standard error); 2 if nothing
acceptable was proposed; 3 without a model.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(cmd.Flags())
			switch {
			case err != nil:
				return err
			case (len(args) == 1) == (action != ""):
				return usageError{errors.New("name a file or an --action, and one of them")}
			case len(inputs) > 0 && action == "":
				return usageError{errors.New("--with is for an --action")}
			case action != "":
				return importAction(cmd, c, action, inputs, dir, network, dryRun)
			}
			return importFile(cmd, c, args[0], dir, network, dryRun)
		}}
	configFlags(cmd, "use-llm-parser", "ollama-base-url", "ollama-model", "openrouter-model", "llm-base-url", "llm-model")
	fs := cmd.Flags()
	fs.BoolVar(&dryRun, "dry-run", false, "run the proposal in a machine, without secrets")
	fs.StringVarP(&dir, "directory", "C", ".", "working tree that a dry run gets a copy of")
	fs.StringVar(&action, "action", "", "propose steps in the place of this action, owner/name@ref")
	fs.StringArrayVar(&inputs, "with", nil, "an input that your step gives the action, name=value; may be repeated")
	fs.StringVar(&network, "network", "none", "network of a dry run, as for tgr run; what installs something needs one")
	return cmd
}

func importFile(cmd *cobra.Command, c *config, file, dir, network string, dryRun bool) error {
	kind, err := foreignKind(file)
	if err != nil {
		return usageError{err}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return usageError{err}
	}
	service, err := newLLM(c, slog.New(slog.DiscardHandler), 10*time.Minute, nil) // a person waits for it
	if err != nil {
		return err
	}
	p, err := service.Propose(cmd.Context(), llm.Foreign{Kind: kind, Source: string(data), Accept: acceptProposal})
	if err := proposalError(err); err != nil {
		return err
	}
	out, notes := cmd.OutOrStdout(), cmd.ErrOrStderr()
	fmt.Fprint(out, strings.TrimRight(p.Workflow, "\n")+"\n")
	fmt.Fprintf(notes, "proposed by %s, accepted by the compiler; read it before you use it\n", p.Model)
	for _, n := range p.Notes {
		fmt.Fprintln(notes, "note:", n)
	}
	if !dryRun {
		return nil
	}
	return tryProposal(cmd.Context(), p.Workflow, dir, network, notes)
}

// foreignKind tells the systems apart by the names that their files have.
func foreignKind(file string) (string, error) {
	base := filepath.Base(file)
	switch {
	case strings.HasSuffix(base, ".gitlab-ci.yml") || strings.HasSuffix(base, ".gitlab-ci.yaml"):
		return "GitLab CI", nil
	case strings.HasPrefix(base, "Jenkinsfile"):
		return "Jenkins", nil
	case filepath.Base(filepath.Dir(file)) == ".circleci" && strings.HasPrefix(base, "config.y"):
		return "CircleCI", nil
	}
	return "", fmt.Errorf("%s is no .gitlab-ci.yml, .circleci/config.yml or Jenkinsfile", file)
}

// acceptProposal is what a proposal has to be before anybody sees it: a workflow that compiles, and that asks for nothing.
func acceptProposal(text string) error {
	w, problems := workflow.Parse(proposedFile, []byte(text))
	if reason := firstProblem(problems); reason != "" {
		return errors.New(reason)
	}
	plan, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push", Ref: "refs/heads/main"}})
	if reason := firstProblem(problems); reason != "" {
		return errors.New(reason)
	}
	if m := w.Match(workflow.Trigger{Event: "push", Ref: "refs/heads/main"}); !m.OK {
		return errors.New("it is not started by a push: " + m.Reason)
	}
	if strings.Contains(text, "secrets.") || strings.Contains(text, "secrets[") || strings.Contains(text, "github.token") {
		return errors.New("it uses secrets")
	}
	if len(plan.Permissions) > 0 {
		return errors.New("it asks for permissions")
	}
	for _, j := range plan.Jobs {
		if err := acceptJob(j); err != nil {
			return fmt.Errorf("job %s: %w", j.Key, err)
		}
	}
	return nil
}

func acceptJob(j workflow.Job) error {
	switch {
	case j.Uses != "" || len(j.Secrets) > 0 || j.SecretsInherit:
		return errors.New("it calls another workflow")
	case len(j.Permissions) > 0:
		return errors.New("it asks for permissions")
	case j.Environment != nil:
		return errors.New("it deploys to an environment")
	case j.Container != nil || len(j.Services) > 0 || j.ServicesExpr != "":
		return errors.New("it uses containers")
	case j.TimeoutMinutes != "" || j.CancelTimeout != "":
		return errors.New("it sets a time of its own")
	case len(j.RunsOn.Labels) != 1 || j.RunsOn.Labels[0] != "ubuntu-latest" || j.RunsOn.Group != "":
		return errors.New("runs-on is to be ubuntu-latest")
	}
	for _, s := range flatSteps(j.Steps) {
		if s.Uses != "" && !strings.HasPrefix(s.Uses, "actions/checkout@") {
			return fmt.Errorf("it uses %s", s.Uses)
		}
	}
	return nil
}

// tryProposal runs a proposal on a copy of the working tree, with tgr run: in a machine, never as a process of this host.
func tryProposal(ctx context.Context, text, dir, network string, out io.Writer) error {
	tmp, err := os.MkdirTemp("", "tgr-import-")
	if err != nil {
		return ours(err)
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "tree")
	if err := os.CopyFS(tree, os.DirFS(dir)); err != nil {
		return ours(fmt.Errorf("copy the working tree: %w", err))
	}
	workflows := filepath.Join(tree, ".github", "workflows")
	if err := os.MkdirAll(workflows, 0o755); err != nil {
		return ours(err)
	}
	if err := os.WriteFile(filepath.Join(workflows, proposedFile), []byte(text), 0o600); err != nil {
		return ours(err)
	}
	self, err := os.Executable()
	if err != nil {
		return ours(err)
	}
	cmd := exec.CommandContext(ctx, self, "run", "push", "-C", tree, "-W", proposedFile, "--isolation", "auto", "--network", network)
	cmd.Stdout, cmd.Stderr = out, out
	for _, name := range []string{"PATH", "HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TMPDIR", "TGR_IMAGE", "TGR_AGENT", "TGR_DATA_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, "TGR_CONFIG=/dev/null")
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitError{exit.ExitCode(), errors.New("the dry run failed")}
	}
	return ours(err)
}
