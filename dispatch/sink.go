package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// sink takes what a job prints and how its steps go on: to its log, to the store, and to who watches.
type sink struct {
	d   *Dispatcher
	l   *Lease
	out Log
	log *slog.Logger

	mu    sync.Mutex // guards what follows, and the order of lines
	err   error      // the first error of the log
	over  bool       // nothing is taken any more: the job goes on with another server
	steps []tgr.Step
	next  Progress // what the store has not been told yet

	dirty chan struct{}
	done  chan struct{}
}

// newSink starts a sink. The store is told of steps from a goroutine of its own, the latest state only, so that a
// slow disk does not slow the job. Close ends it.
func (d *Dispatcher) newSink(l *Lease, out Log, log *slog.Logger) *sink {
	s := &sink{d: d, l: l, out: out, log: log, dirty: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for range s.dirty {
			s.flush()
		}
	}()
	return s
}

// Line takes one line of the job's log.
func (s *sink) Line(l tgr.LogLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	if err := s.out.Append(l); err != nil && s.err == nil {
		s.err = err
		s.log.Error("append to the job's log", "error", err)
	}
	if s.d.c.Observe.Line != nil {
		s.d.c.Observe.Line(s.l.Job, l)
	}
}

// Flush implements runner.Flusher.
func (s *sink) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Flush()
}

// freeze keeps the log and the steps as they are.
func (s *sink) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// say puts a line of the server's own into the job's log.
func (s *sink) say(format string, args ...any) {
	s.Line(tgr.LogLine{Time: s.d.c.Now(), Text: fmt.Sprintf(format, args...)})
}

// Steps takes the state of all steps.
func (s *sink) Steps(steps []tgr.Step) {
	steps = slices.Clone(steps)
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.observe(steps)
	s.steps = steps
	s.mu.Unlock()
	s.progress(Progress{Steps: steps})
	if s.d.c.Observe.Steps != nil {
		s.d.c.Observe.Steps(s.l.Job, steps)
	}
}

// observe tells how long the steps took that have ended since the last time.
func (s *sink) observe(steps []tgr.Step) {
	if s.d.c.Observe.Stepped == nil {
		return
	}
	for i, st := range steps {
		ended := st.Status.Done() && !st.Started.IsZero() && (i >= len(s.steps) || !s.steps[i].Status.Done())
		if ended {
			s.d.c.Observe.Stepped(st.Conclusion, max(0, st.Finished.Sub(st.Started)))
		}
	}
}

// progress has the store told, soon.
func (s *sink) progress(p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Steps != nil {
		s.next.Steps = p.Steps
	}
	if p.Machine != "" {
		s.next.Machine, s.next.Isolation = p.Machine, p.Isolation
	}
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

func (s *sink) flush() {
	s.mu.Lock()
	p := s.next
	s.next = Progress{}
	s.mu.Unlock()
	if p.Steps == nil && p.Machine == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.d.c.Jobs.Progress(ctx, s.l.Job.ID, s.l.Token, p); err != nil && tgr.CodeOf(err) != tgr.Conflict {
		s.log.Error("record the steps", "error", err)
	}
}

// close ends the sink: everything is written when it returns. It returns the first error of the log.
func (s *sink) close() error {
	close(s.dirty)
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.out.Close(); err != nil && s.err == nil {
		s.err = err
	}
	return s.err
}
