package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/vm"
)

// runFlags are what `tgr run` was asked for.
type runFlags struct {
	dir       string
	files     []string
	job       string
	matrix    []string
	inputs    []string
	secrets   []string
	vars      []string
	env       []string
	payload   string
	ref       string
	isolation string
	keep      bool // the machines of jobs that fail
	steps     bool // a snapshot before each step
	here      bool // the isolation was asked for on the command line: on this host, whatever API there is
	image     string
	network   string
	asJSON    bool
	quiet     bool
	verbose   bool
	parallel  int
}

func newRunCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [event]",
		Short: "Run the workflows of the repository you are in",
		Long: `Run the workflows of the repository you are in, as the event (push, if none is given) would start them.

Workflows and files are those of the working tree, uncommitted changes included; ignored files are not part of it.
The exit status is 0 if all jobs succeeded, 1 if one failed, 2 for a bad workflow or command line, 3 for a fault of ours.`,
		Example: `  tgr run
  tgr run --ref v1.2
  tgr run pull_request -j test --matrix go:1.26
  tgr run workflow_dispatch -W release.yml --input version=1.2.3 --secret TOKEN`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.here = cmd.Flags().Changed("isolation")
			event := "push"
			if len(args) == 1 {
				event = args[0]
			}
			if err := knownEvent(event); err != nil {
				return usageError{err}
			}
			return runLocal(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), event, f)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.dir, "directory", "C", ".", "the repository's working tree")
	fs.StringArrayVarP(&f.files, "workflow", "W", nil, "only this workflow: a path, or a file's name; may be repeated")
	fs.StringVarP(&f.job, "job", "j", "", "only this job, and those it needs")
	fs.StringArrayVar(&f.matrix, "matrix", nil, "only combinations with key:value; may be repeated")
	fs.StringArrayVar(&f.inputs, "input", nil, "input of workflow_dispatch, name=value; may be repeated")
	fs.StringArrayVarP(&f.secrets, "secret", "s", nil, "secret, NAME=value, or NAME for the value of that variable; may be repeated")
	fs.StringArrayVar(&f.vars, "var", nil, "configuration variable, NAME=value; may be repeated")
	fs.StringArrayVar(&f.env, "env", nil, "environment variable for all steps, NAME=value; may be repeated")
	fs.StringVarP(&f.payload, "payload", "e", "", "file with the event's payload, JSON")
	fs.StringVar(&f.ref, "ref", "", "branch or tag, such as main or v1.2, or the full `ref`, of a push or a workflow_dispatch, and the target of a pull request; default: what is checked out, and its default branch")
	fs.StringVar(&f.isolation, "isolation", envOr("TGR_ISOLATION", "auto"), isolationHelp+" ($TGR_ISOLATION)")
	fs.StringVar(&f.image, "image", "", "image of the machines ($TGR_IMAGE)")
	fs.StringVar(&f.network, "network", "auto", "network of machines: auto, slots, none or user; see tgr serve")
	fs.BoolVar(&f.steps, "snapshot-steps", false, "take a snapshot of the machine before each step and keep the last three, for tgr vm rollback; with --keep-on-failure; needs $FIRECRACKER_API_URL")
	fs.BoolVar(&f.keep, "keep-on-failure", false, "keep the machines of jobs that fail for an hour, for tgr vm shell; needs $FIRECRACKER_API_URL")
	fs.BoolVar(&f.asJSON, "json", false, "print JSON lines: log, step, job and run")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "no log lines")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "also what each step is given, and, on standard error, a log of our own")
	fs.IntVar(&f.parallel, "parallel", runtime.NumCPU(), "jobs at once")
	return cmd
}

// runLocal plans the event, runs its jobs, and turns how they ended into the exit status.
func runLocal(ctx context.Context, stdout, stderr io.Writer, event string, f runFlags) error {
	debug.SetGCPercent(400) // a heap of a few megabytes, for a few moments: time is dearer
	log := slog.New(slog.DiscardHandler)
	if f.verbose {
		log = slog.New(slog.NewTextHandler(stderr, nil))
	}
	if err := f.check(); err != nil {
		return usageError{err}
	}
	// A terminal that is closed is an interrupt; a reader that goes away is an error of writing, and not our death.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	dir, err := runFolder(ctx, log)
	if err != nil {
		return ours(err)
	}
	defer os.RemoveAll(dir)
	var src *localSource
	looked := make(chan error, 1)
	go func() {
		var err error
		src, err = openLocalSource(ctx, f.dir, filepath.Join(dir, "source"), log)
		looked <- err
	}()
	machines, cleanup, failed := localMachines(ctx, f, filepath.Join(dir, "machines"), log, stderr)
	if failed == nil {
		defer cleanup()
	}
	if err := <-looked; err != nil {
		return usageError{err}
	}
	ev, err := localEvent(ctx, event, src, f)
	if err != nil {
		return usageError{err}
	}
	secrets, vars, err := localSecrets(f)
	if err != nil {
		return usageError{err}
	}
	if src.only, err = src.choose(f.files); err != nil {
		return usageError{err}
	}
	if failed != nil {
		return ours(failed)
	}

	out := newPrinter(stdout, f.asJSON, colorful(stdout))
	out.quiet, out.wordy, out.many = f.quiet, f.verbose, true
	defer out.flush()
	l := &localRun{out: out, memory: &dispatch.Memory{}, wanted: newWanted(f.matrix), boots: f.isolation != "process", done: make(chan struct{})}
	l.id = l.memory.Accept(ev)
	services, closeServices := localServices(log)
	defer closeServices()
	d := dispatch.New(dispatch.Config{
		Jobs: l.memory, Runs: l.memory, Source: src, Machines: machines, Labels: machines.labels, Logs: noLogs{}, Log: log, Services: services,
		Edit: f.edit, Keep: l.wanted.keep, Workers: f.parallel,
		Lease: 400 * time.Millisecond, // nobody else wants the jobs; a cancellation is noticed within a quarter of it
		Vault: flagVault{secrets, vars}, Tokens: flagToken(secrets),
		Egress: machines.egress, Observe: dispatch.Observer{Line: out.Line, Steps: out.Steps, Settled: l.settled},
	})
	l.run(ctx, d)
	return l.verdict(stderr)
}

// localRun is one call of `tgr run`.
type localRun struct {
	out    *printer
	memory *dispatch.Memory
	wanted *wanted
	id     tgr.RunID
	done   chan struct{}      // closed when every run is completed
	over   bool               // done is closed, or about to be
	boots  bool               // a machine takes seconds
	begun  map[tgr.JobID]int  // tries of each job that were said to begin
	shown  map[tgr.JobID]bool // jobs that were said to have ended
}

// run works until every run is completed. The first interrupt cancels the jobs, which may still clean up; the second
// one ends them.
func (l *localRun) run(ctx context.Context, d *dispatch.Dispatcher) {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := d.Run(work); err != nil {
			l.out.say("tgr: " + err.Error() + "\n")
		}
	}()
	select {
	case <-l.done:
	case <-l.out.broken:
	case <-ctx.Done():
		l.memory.Cancel("interrupted")
		again := make(chan os.Signal, 1)
		notifyInterrupt(again)
		if err := d.Settle(work, l.id); err != nil {
			l.out.say("tgr: " + err.Error() + "\n")
		}
		select {
		case <-l.done:
		case <-l.out.broken:
		case <-again:
			l.out.end("tgr: interrupted again: everything ends at once\n")
		}
	}
	stop()
	<-ended
}

// settled shows the jobs that have ended, and ends the whole when all runs have. Dispatch calls it from its
// goroutines; the printer's lock keeps them apart.
func (l *localRun) settled(tgr.RunID) {
	runs, jobs := l.memory.All()
	l.out.mu.Lock()
	if l.shown == nil {
		l.shown, l.begun = map[tgr.JobID]bool{}, map[tgr.JobID]int{}
	}
	if len(runs) > 1 && l.out.flows == nil {
		l.out.flows = map[tgr.RunID]string{}
		for _, r := range runs {
			l.out.flows[r.ID] = r.WorkflowName
		}
	}
	var show []func()
	open := false
	for _, r := range runs {
		for _, j := range jobs[r.ID] {
			if j.Status == tgr.InProgress && l.begun[j.ID] < j.Tries && j.Kind == tgr.WorkJob {
				l.begun[j.ID] = j.Tries
				show = append(show, func() { l.out.Boot(j, l.boots) })
			}
			if j.Status.Done() && !l.shown[j.ID] && j.Kind != tgr.PlanJob && !j.Calling() {
				l.shown[j.ID] = true
				show = append(show, func() { l.out.Job(r.WorkflowName, j) })
			}
		}
		open = open || !r.Status.Done()
	}
	if !open && l.done != nil && !l.over {
		l.over = true
		for _, r := range runs {
			show = append(show, func() { l.out.Run(r) })
		}
		defer close(l.done)
	}
	l.out.mu.Unlock()
	for _, f := range show {
		f()
	}
}

// verdict is the exit status: the worst of what happened.
func (l *localRun) verdict(stderr io.Writer) error {
	runs, jobs := l.memory.All()
	code, started := 0, 0
	for _, r := range runs {
		if r.Conclusion == tgr.StartupFailure {
			code = max(code, exitUsage)
		}
		for _, j := range jobs[r.ID] {
			if j.Kind != tgr.PlanJob {
				started++
			}
			switch {
			case !j.Status.Done():
				code = max(code, exitFailed)
			case !j.Conclusion.Failed(), j.ContinueOnError:
			case j.Blame == tgr.BlameOurs:
				code = max(code, exitOurs)
			case j.Blame == tgr.BlameWorkflow:
				code = max(code, exitUsage)
			default:
				code = max(code, exitFailed)
			}
		}
	}
	if l.out.flush(); l.out.err != nil {
		return ours(l.out.err)
	}
	if code == 0 && started == 0 {
		return exitError{exitUsage, errors.New("nothing was started: " + runs[0].Reason)}
	}
	if err := l.wanted.unmet(); code == 0 && err != nil {
		return usageError{err}
	}
	if code != 0 {
		return exitError{code: code}
	}
	return nil
}

// runFolder makes the folder for all that a run needs on the host, and removes what is left of runs that were killed,
// with their machines. It is not below the working tree, and its name is short: the path of a socket may have 107 bytes.
func runFolder(ctx context.Context, log *slog.Logger) (string, error) {
	const prefix = "tgr-run-"
	dead, err := vm.DeadFolders(os.TempDir(), prefix)
	if err != nil {
		return "", fmt.Errorf("the folder for temporary files (TMPDIR): %w", err)
	}
	for _, dir := range dead {
		reaped, err := vm.Journal{Dir: filepath.Join(dir, "machines")}.Reap(ctx, nil)
		for _, r := range reaped {
			err = errors.Join(err, r.Err)
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		log.Warn("removed what a run that was killed left", "folder", dir, "machines", len(reaped), "error", err)
	}
	return vm.MakeFolder(os.TempDir(), prefix)
}

// localMachines are machines that live no longer than the command.
func localMachines(ctx context.Context, f runFlags, dir string, log *slog.Logger, stderr io.Writer) (*ahead, func(), error) {
	c, err := loadConfig(newConfigCmd().Flags())
	if err != nil {
		return nil, nil, err
	}
	mc, err := machinesOf(c)
	if err != nil {
		return nil, nil, err
	}
	mc.isolation = f.isolation
	mc.remote.keep, mc.remote.steps = f.keep, f.steps
	if f.here {
		mc.remote = remoteConfig{}
	}
	if f.steps && !f.keep {
		return nil, nil, usagef("--snapshot-steps: nobody could roll back a machine that goes with its job; add --keep-on-failure")
	}
	if f.keep && mc.remote.url == "" {
		return nil, nil, usagef("--keep-on-failure: machines of this command end with it; run tgr vmd, and set FIRECRACKER_API_URL to its address")
	}
	if f.image != "" {
		mc.image = f.image
	}
	mc.network, mc.pool = f.network, 0
	mc.dir, mc.mortal = dir, true
	m, err := openMachines(ctx, mc, log)
	if err != nil {
		return nil, nil, err
	}
	if mc.isolation == "process" && mc.remote.url == "" && !f.verbose { // whose log says it
		fmt.Fprintln(stderr, "tgr: NO ISOLATION: jobs run as processes of this host and of this user")
	}
	first := startAhead(ctx, m, m.labels, "first-"+tgr.NewToken()[:6], warmOnce(m.warm, log, stderr))
	first.egress = m.egress
	return first, func() {
		first.close()
		if err := m.Close(); err != nil {
			fmt.Fprintln(stderr, "tgr:", err)
		}
	}, nil
}

// warmOnce takes the snapshot that this and later runs start their machines from, unless it was taken before: then it was
// loaded for this run. Without it machines are booted.
func warmOnce(warm func(context.Context) error, log *slog.Logger, stderr io.Writer) func(context.Context) {
	if warm == nil {
		return nil
	}
	return func(ctx context.Context) {
		slow := time.AfterFunc(2*time.Second, func() {
			fmt.Fprintln(stderr, "tgr: taking a snapshot of a machine, once for this image; later ones start from it in a moment")
		})
		defer slow.Stop()
		if err := warm(ctx); err != nil && ctx.Err() == nil {
			log.Warn("no snapshot could be taken: machines are booted", "error", err)
		}
	}
}

// noLogs keeps no log: `tgr run` shows it, and that is all.
type noLogs struct{}

// Create implements dispatch.Logs.
func (noLogs) Create(tgr.JobID, int) (dispatch.Log, error) { return noLogs{}, nil }

// Append implements dispatch.Log.
func (noLogs) Append(...tgr.LogLine) error { return nil }

// Flush implements dispatch.Log.
func (noLogs) Flush() error { return nil }

// Steps implements dispatch.Log.
func (noLogs) Steps() (int, error) { return 0, nil }

// Close implements dispatch.Log.
func (noLogs) Close() error { return nil }

func colorful(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
}
