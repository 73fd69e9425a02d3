package dispatch

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/terraphim/tgr/runner"
)

// provided is what a job has of the server, and keeps when another server goes on with it.
type provided struct {
	ActionEnv map[string]string // tells actions of the services
	Port      string            // of the services in the machine; "": there are none
	Served
	Notes []string // that Set up job shows
}

// jobToRun is what the runner has to know of a job. Its token is to be revoked when the job has ended.
func (d *Dispatcher) jobToRun(ctx context.Context, l *Lease, from *Resumption) (runner.Job, Token, error) {
	if from == nil {
		return d.jobOf(ctx, l)
	}
	t := Token{Value: from.head.Runner.Token}
	if d.c.Revoke != nil && t.Value != "" {
		t.Revoke = func(ctx context.Context) error { return d.c.Revoke(ctx, t.Value) }
	}
	return from.head.Runner, t, nil
}

// provide starts the services of a job. Those of a job that goes on are where they were, and its tokens are good.
func (d *Dispatcher) provide(ctx context.Context, m *Machine, l *Lease, job runner.Job, s *sink, from *Resumption) (p provided, err error) {
	if from != nil {
		p = provided{ActionEnv: from.head.ActionEnv, Port: from.head.Port, Notes: from.head.Notes}
	}
	served, port, err := d.serve(ctx, m, l, job, s, p.Port)
	if p.Served = served; from == nil {
		p.ActionEnv, p.Port = served.Env, port
	}
	return p, err
}

// end ends the services, with the job.
func (p *provided) end() {
	if p.End != nil {
		p.End()
	}
}

// witness takes down what a job is told, if its machine can outlive this server.
type witness struct {
	job       runner.Job
	tape      *tape // nil: the job ends with this server
	recording *runner.Recording
	logged    int
}

// tape begins the tape of a job, or goes on with it. A job without one is as good, as long as this server lives.
func (d *Dispatcher) tape(l *Lease, m *Machine, job runner.Job, p *provided, from *Resumption, log *slog.Logger) *witness {
	w := &witness{job: job}
	if from != nil {
		w.recording, w.logged = from.recording, from.logged
		w.tape = from.tape
		return w
	}
	if d.c.Tapes == nil || m.Leave == nil {
		return w
	}
	t, again, err := d.c.Tapes.create(tapeHead{
		Job: l.Job.ID, Lease: l.Token, Machine: m.ID, Port: p.Port, ActionEnv: p.ActionEnv, Notes: p.Notes, Runner: job,
	})
	if err != nil {
		log.Warn("the job will end with this server", "error", err)
		return w
	}
	w.tape, w.job = t, again
	return w
}

// leave lets go of the machine if another server follows and the job can go on with it. Nothing of what this server makes
// of the broken stream is seen by anybody.
func (w *witness) leave(followed func() bool, s *sink, m *Machine) bool {
	if w.tape == nil || m.Leave == nil || !followed() || !w.tape.freeze() {
		return false
	}
	s.freeze()
	if err := m.Leave(); err != nil {
		s.log.Warn("leave the machine to the next server", "vm", m.ID, "error", err)
	}
	return true
}

// close ends the tape.
func (w *witness) close(left bool) error { return w.tape.end(left) }

// close ends what prepare opened, whatever became of the job. It is idempotent.
func (r *Resumption) close(left bool) { _ = r.tape.end(left) }

// prepare opens what a job goes on with, when its log is open.
func (r *Resumption) prepare(out Log) (err error) {
	if r.logged, err = out.Steps(); err != nil {
		return fmt.Errorf("read the job's log: %w", err)
	}
	if r.tape, err = r.reopen(); err != nil {
		return fmt.Errorf("the tape of the job: %w", err)
	}
	return nil
}

var _ runner.Tape = (*tape)(nil)
