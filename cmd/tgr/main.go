// Command tgr is the Terraphim GitHub Runner: server, worker and command line in one binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	_ "time/tzdata" // the time zones of schedules, also on a host that has none

	"github.com/spf13/cobra"
)

// Exit statuses of every verb.
const (
	exitFailed = 1 // the job, or what was asked about, failed
	exitUsage  = 2 // a bad workflow, or a command line that makes no sense
	exitOurs   = 3 // our own fault: a machine, the network, a bug
)

func main() { os.Exit(Main(os.Args[1:])) }

// Main runs the command line and returns the exit status.
func Main(args []string) int {
	ctx, stop := notifyStop(context.Background())
	defer stop()
	cmd := newRootCmd()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) {
		coded = usageError{err} // cobra's own: an unknown verb or flag
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(os.Stderr, "tgr:", msg)
	}
	return coded.ExitCode()
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "tgr",
		Short: "Run GitHub Actions workflows in microVMs of your own",
		Long: `tgr receives GitHub webhooks, compiles the workflows of the pushed commit, runs every job in a
microVM of its own, and reports back to GitHub.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.AddCommand(
		newServeCmd(), newRunCmd(), newRunsCmd(), newApproveCmd(), newSecretCmd(), newVarCmd(), newEnvironmentCmd(),
		newExplainCmd(), newInsightsCmd(), newLearnCmd(), newEvalCmd(), newImportCmd(), newWebhookCmd(), newCacheCmd(), newArtifactCmd(),
		newCheckCmd(), newPlanCmd(), newExprCmd(),
		newImageCmd(), newDoctorCmd(), newConfigCmd(), newVMDCmd(), newVMCmd(), newVersionCmd(),
		newDemoCmd(), newBenchCmd(), newGuestCmd(),
	)
	return root
}

// exitError is an error with an exit status. An empty message prints nothing: everything was said already.
type exitError struct {
	code int
	err  error
}

// Error is the message, if there is one.
func (e exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

// Unwrap returns the cause.
func (e exitError) Unwrap() error { return e.err }

// ExitCode is the exit status.
func (e exitError) ExitCode() int { return e.code }

// usageError is a command line, or a configuration, that makes no sense.
type usageError struct{ err error }

// Error is the message.
func (e usageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e usageError) Unwrap() error { return e.err }

// ExitCode is 2.
func (e usageError) ExitCode() int { return exitUsage }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// ours marks an error as our own fault.
func ours(err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return err
	}
	return exitError{exitOurs, err}
}
