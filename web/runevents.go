package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/terraphim/tgr"
)

// runEvents streams the states of a run, its jobs and their steps: first all of them, then each that changes,
// until the run has ended. A client that resumes gets them all again, which is what it needs to be right.
func (s *Server) runEvents(w http.ResponseWriter, r *request) error {
	run, err := s.run(r)
	if err != nil {
		return err
	}
	st, done, err := s.openStream(w, r)
	if err != nil {
		return err
	}
	defer done()
	v := &watcher{s: s, st: st, id: run.ID, seen: map[string][]byte{}}
	if err := v.run(r.Context()); err != nil {
		s.failed(st, r, err)
	}
	return nil
}

// watcher streams one run's states to one client.
type watcher struct {
	s    *Server
	st   *stream
	id   tgr.RunID
	seen map[string][]byte // what was last sent, by what it is about
}

func (v *watcher) run(ctx context.Context) error {
	heart := time.NewTicker(v.s.cfg.Heartbeat)
	defer heart.Stop()
	for {
		// Subscribed before the look, so that no change falls between the two.
		changed, free := v.changes()
		done, err := v.look(ctx)
		if err == nil && !done {
			done = v.wait(ctx, changed, heart.C)
		}
		free()
		if err != nil || done {
			return err
		}
	}
}

func (v *watcher) changes() (<-chan struct{}, func()) {
	if v.s.cfg.Changed == nil {
		return nil, func() {}
	}
	return v.s.cfg.Changed(v.id)
}

// wait returns when it is time for another look, or true when there is nobody to look for.
func (v *watcher) wait(ctx context.Context, changed <-chan struct{}, heart <-chan time.Time) (done bool) {
	pause, poll := time.NewTimer(streamPause), time.NewTimer(v.s.cfg.Poll)
	defer pause.Stop()
	defer poll.Stop()
	paused, hit := false, false
	for {
		select {
		case <-changed:
			hit, changed = true, nil // a closed channel would fire for ever
		case <-pause.C:
			paused = true
		case <-poll.C:
			return false
		case <-heart:
			if v.st.heartbeat() != nil {
				return true
			}
		case <-ctx.Done():
			return true
		case <-v.s.stop:
			return true
		}
		if hit && paused {
			return false
		}
	}
}

// look reads the run and sends what has changed. It returns true at the end: of the run, or of the client.
func (v *watcher) look(ctx context.Context) (done bool, err error) {
	// The run is read before its jobs: when it is completed, what is read of them is final too.
	run, err := v.s.cfg.Runs.Run(ctx, v.id)
	if err != nil {
		return false, err
	}
	jobs, err := v.s.cfg.Runs.Jobs(ctx, run.ID, run.Attempt)
	if err != nil {
		return false, err
	}
	if err := v.send(run, jobs); err != nil {
		return true, nil
	}
	if !run.Status.Done() {
		return false, nil
	}
	if v.st.event("done", "", StreamEnd{run.Status, run.Conclusion, run.Reason}) == nil {
		v.st.flush() // an error means that the client has gone
	}
	return true, nil
}

func (v *watcher) send(run tgr.Run, jobs []tgr.Job) error {
	if err := v.changed("run", "run", run); err != nil {
		return err
	}
	for _, job := range jobs {
		steps := job.Steps
		job.Steps = nil
		if err := v.changed("job", fmt.Sprint("job ", job.ID), job); err != nil {
			return err
		}
		for _, step := range steps {
			if err := v.changed("step", fmt.Sprint("step ", job.ID, " ", step.Number), StepState{job.ID, step}); err != nil {
				return err
			}
		}
	}
	return v.st.flush()
}

// changed sends an event unless the last one about the same thing said the same.
func (v *watcher) changed(event, about string, state any) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	if bytes.Equal(v.seen[about], b) {
		return nil
	}
	v.seen[about] = b
	return v.st.event(event, "", json.RawMessage(b))
}
