package main

import (
	"context"
	"sync/atomic"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/vm"
)

// ahead starts one machine before it is known which job gets it: while the workflows are read it comes up.
// Whoever is the first to acquire one of the default kind gets it.
type ahead struct {
	dispatch.Machines
	labels dispatch.Labels
	egress func(tgr.Run) vm.Egress // of jobs, for dispatch
	stop   context.CancelFunc
	taken  atomic.Bool // somebody has it, or waits for it
	given  atomic.Bool // it is the taker's to release
	first  chan acquired
}

type acquired struct {
	machine *dispatch.Machine
	release func()
	err     error
}

// startAhead starts a machine under an id of its own, once warm has returned, if it is not nil. The caller closes the ahead.
func startAhead(ctx context.Context, m dispatch.Machines, labels dispatch.Labels, id string, warm func(context.Context)) *ahead {
	ctx, stop := context.WithCancel(ctx)
	a := &ahead{Machines: m, labels: labels, stop: stop, first: make(chan acquired, 1)}
	go func() {
		if warm != nil {
			warm(ctx)
		}
		machine, release, err := m.Acquire(ctx, dispatch.Spec{ID: id})
		a.first <- acquired{machine, release, err}
	}()
	return a
}

// Acquire implements dispatch.Machines. A machine that did not come up is tried again, under the job's name.
func (a *ahead) Acquire(ctx context.Context, s dispatch.Spec) (*dispatch.Machine, func(), error) {
	if k, err := a.labels.Kind(s.Labels); err != nil || k != (dispatch.Kind{}) || a.taken.Swap(true) {
		return a.Machines.Acquire(ctx, s)
	}
	select {
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case got := <-a.first:
		a.given.Store(true)
		if got.err == nil {
			return got.machine, got.release, nil
		}
	}
	return a.Machines.Acquire(ctx, s)
}

// close frees the machine if nobody was given it.
func (a *ahead) close() {
	a.stop()
	if a.given.Load() {
		return
	}
	if got := <-a.first; got.err == nil {
		got.release()
	}
}
