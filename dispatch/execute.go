package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

// execute runs one job on a machine of its own, or goes on with it, and records how it ended.
func (d *Dispatcher) execute(ctx context.Context, l *Lease, from *Resumption) {
	log := d.c.Log.With("run", l.Run.ID, "job", l.Job.ID, "try", l.Job.Tries)
	// The work does not end with the server's context: then its machine is killed at once, rather than given time for
	// the steps that run on a cancellation.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	endBeats := d.keep(ctx, l, stop)

	d.settle(ctx, l.Run.ID) // the reports say that it runs
	result, err := d.runJob(ctx, work, l, from, log)
	cause := context.Cause(work)
	endBeats()

	record, done := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer done()
	switch {
	case errors.Is(cause, ErrLeaseLost):
		log.Warn("the job was given to another worker; what happened here is dropped")
		return
	case errors.Is(err, errLeft):
		log.Info("the job goes on, and is left to the next server")
		return
	case err != nil && ctx.Err() != nil:
		d.release(record, l, "the server was stopped", true, log)
	case err != nil && l.Job.Tries-l.Job.Excused < maxTries:
		log.Error("our fault: the job will be retried", "error", err)
		d.faulted(tgr.BlameOurs)
		d.release(record, l, "retried after a fault of ours: "+err.Error(), false, log)
	default:
		if err != nil {
			log.Error("our fault: no try is left", "error", err)
			result = JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameOurs, Reason: err.Error(), Steps: result.Steps}
		}
		if result.Blame != "" {
			d.faulted(result.Blame)
		}
		log.Info("job ended", "conclusion", result.Conclusion, "blame", result.Blame, "reason", result.Reason)
		d.finish(record, l, result, log)
	}
	d.settle(record, l.Run.ID)
}

// release puts a job back into the queue, when nothing more can be done about an error than to log it: the lease will
// expire.
func (d *Dispatcher) release(ctx context.Context, l *Lease, reason string, excused bool, log *slog.Logger) {
	if err := d.c.Jobs.Release(ctx, l.Job.ID, l.Token, reason, excused); err != nil {
		log.Error("put a job back into the queue", "error", err)
	}
}

// errLeft is what became of a job that goes on with the next server.
var errLeft = errors.New("the job was left to the next server")

// runJob gets a machine and runs the job on it, or goes on with one. The error is a fault of ours, or errLeft.
// When server ends the machine is killed, or left; when work ends the job is wound up as its workflow says.
func (d *Dispatcher) runJob(server, work context.Context, l *Lease, from *Resumption, log *slog.Logger) (result JobResult, err error) {
	job, token, err := d.jobToRun(work, l, from)
	if blame := blameOf(err); blame != "" && blame != tgr.BlameOurs {
		return JobResult{Conclusion: tgr.Failure, Blame: blame, Reason: tgr.MessageOf(err)}, nil
	} else if err != nil {
		return result, err
	}
	defer func() {
		if !errors.Is(err, errLeft) {
			d.revoke(server, token, log)
		}
	}()
	out, err := d.c.Logs.Create(l.Job.ID, l.Job.Tries)
	if err != nil {
		return result, fmt.Errorf("create the job's log: %w", err)
	}
	s := d.newSink(l, out, log)
	defer func() {
		if cerr := s.close(); cerr != nil && err == nil {
			err = fmt.Errorf("write the job's log: %w", cerr)
		}
	}()

	if from != nil {
		if err := from.prepare(out); err != nil {
			return result, err
		}
		defer func() { from.close(errors.Is(err, errLeft)) }()
		s.say("The server started again, and goes on with the job")
	}
	if why := d.shortened(l, job); why != "" && from == nil {
		s.say("##[warning]%s", why)
	}
	asked := d.c.Now()
	m, release, err := d.acquire(server, work, l, job.Job, from)
	if err != nil {
		if cancel := new(CancelError); errors.As(context.Cause(work), &cancel) {
			return JobResult{Conclusion: tgr.Cancelled, Reason: cancel.Reason}, nil
		}
		return result, fmt.Errorf("get a machine: %w", err)
	}
	defer release()
	stay := context.AfterFunc(server, release)
	defer stay()
	defer context.AfterFunc(work, func() {
		if errors.Is(context.Cause(work), ErrLeaseLost) {
			release()
		}
	})()
	log.Info("machine", "vm", m.ID, "isolation", m.Isolation, "boot", m.Boot, "resumed", from != nil)
	if d.c.Observe.Acquired != nil && from == nil {
		d.c.Observe.Acquired(m.Isolation, d.c.Now().Sub(asked), m.Boot)
	}
	s.progress(Progress{Machine: m.ID, Isolation: m.Isolation})
	if err := d.connect(m, l, s); err != nil {
		return result, fmt.Errorf("give the machine its network: %w", err)
	}
	p, err := d.provide(work, m, l, job, s, from)
	if err != nil {
		if tgr.BlameOf(err) == tgr.BlameWorkflow {
			return JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameWorkflow, Reason: tgr.MessageOf(err)}, nil
		}
		return result, err
	}
	if from == nil {
		p.Notes = append(d.notes(m, token, job), d.warnings(l)...)
	}
	w := d.tape(l, m, job, &p, from, log)
	leave := sync.OnceValue(func() bool { return w.leave(d.c.Leave, s, m) })
	stay()
	defer context.AfterFunc(server, func() {
		if !leave() {
			release()
		}
	})()
	res, err := runner.Run(work, d.runnerConfig(l, m, s, p, w, log), w.job)
	left := server.Err() != nil && leave()
	if cerr := w.close(left); cerr != nil {
		log.Warn("the tape of the job", "error", cerr)
	}
	if left { // whatever it came to, the next server comes to the same
		return result, errLeft
	}
	p.end()
	if err != nil {
		s.say("##[error]This is not your workflow's fault: %v", err)
	} else if m.Ended != nil {
		if line := m.Ended(res.Conclusion); line != "" {
			s.say("%s", line)
		}
	}
	return JobResult{Conclusion: res.Conclusion, Blame: res.Blame, Reason: res.Reason,
		Outputs: res.Outputs, Steps: res.Steps, Annotations: res.Annotations, Summary: summary(res.Summaries)}, err
}

// notes are what Set up job shows of the machine.
func (d *Dispatcher) notes(m *Machine, token Token, job runner.Job) []string {
	notes := []string{m.note()}
	if token.Note != "" {
		notes = append(notes, token.Note)
	}
	if minutes := job.Instance.TimeoutMinutes; job.Job.TimeoutMinutes == "" && minutes < workflow.DefaultTimeout {
		why := "learnt from earlier runs"
		if minutes >= d.c.Most.Minutes() {
			why = "the most that this server allows"
		}
		notes = append(notes, fmt.Sprintf("Time-out: %.1f minutes, %s, as the workflow states none", minutes, why))
	}
	return notes
}

// runnerConfig is what a job runs with on its machine.
func (d *Dispatcher) runnerConfig(l *Lease, m *Machine, s *sink, p provided, w *witness, log *slog.Logger) runner.Config {
	c := runner.Config{
		Machine: m.Machine, Before: before(m, s), Dirs: m.Dirs, Nodes: m.Nodes, Node: m.Node, Engines: m.Engines, Env: m.Env, ActionEnv: p.ActionEnv, InputEnv: p.InputEnv, User: m.User, Sink: s,
		Checkout: d.c.Source.Checkout(l.Run.Event, w.job.Token), Actions: d.c.Source.Actions(l.Run.Event, w.job.Token),
		Runner: runner.RunnerInfo{Name: m.ID, Notes: p.Notes},
		Now:    d.c.Now, Log: log.With("vm", m.ID),
	}
	if w.tape != nil {
		c.Tape, c.Resume, c.Logged = w.tape, w.recording, w.logged
	}
	return c
}

// before is the runner's Before for a machine that wants to know.
func before(m *Machine, s *sink) func(context.Context, int, string) {
	if m.Before == nil {
		return nil
	}
	return func(ctx context.Context, number int, name string) {
		if line := m.Before(ctx, number, name); line != "" {
			s.say("%s", line)
		}
	}
}

// maxSummary is how much of what a job's steps wrote to their summaries is kept: half of what a check run may show.
const maxSummary = 32 << 10

// summary joins the summaries of a job's steps, as GitHub shows them: one below the other.
func summary(steps []runner.Summary) string {
	const more = "\n\n(The rest is cut off.)"
	var b strings.Builder
	for _, s := range steps {
		if b.Len() > 0 {
			b.WriteString("\n\n")
		}
		b.WriteString(s.Markdown)
		if b.Len() > maxSummary {
			return strings.ToValidUTF8(b.String()[:maxSummary-len(more)], "") + more
		}
	}
	return b.String()
}

// acquire gets a machine, or takes over the one that a job has, unless either context or the time for it ends.
func (d *Dispatcher) acquire(server, work context.Context, l *Lease, j *workflow.Job, from *Resumption) (*Machine, func(), error) {
	ctx, cancel := context.WithTimeoutCause(work, d.c.Acquire, fmt.Errorf("no machine within %s", d.c.Acquire))
	defer cancel()
	defer context.AfterFunc(server, cancel)()
	spec := Spec{ID: machineID(l), Labels: l.Job.Labels, Run: l.Run, Engine: engineFor(j)}
	if from != nil {
		m, release, err := Adopt(ctx, d.c.Machines, spec, from.Machine)
		return m, sync.OnceFunc(release), err
	}
	m, release, err := d.c.Machines.Acquire(ctx, spec)
	return m, sync.OnceFunc(release), err
}

// engineFor reports whether a job says that it has containers. What a remote action is made of is not known yet.
func engineFor(j *workflow.Job) bool {
	return j.Container != nil || len(j.Services) > 0 ||
		slices.ContainsFunc(j.Steps, func(s workflow.Step) bool { return strings.HasPrefix(s.Uses, "docker://") })
}

func (d *Dispatcher) faulted(b tgr.Blame) {
	if d.c.Observe.Faulted != nil {
		d.c.Observe.Faulted(b)
	}
}

// machineID names the machine of one try of a job on its host.
func machineID(l *Lease) string {
	return fmt.Sprintf("r%d-j%d-t%d-%s", l.Run.ID, l.Job.ID, l.Job.Tries, l.Token[:6])
}
