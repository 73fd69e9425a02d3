package vm

import (
	"context"
	"sync"
)

// Ending is how a machine ended, once it has: the part of a VM that every backend has alike. NewEnding makes one, and
// it is safe for concurrent use.
type Ending struct {
	once sync.Once
	done chan struct{}
	err  error
}

// NewEnding returns the Ending of a machine that has not ended.
func NewEnding() *Ending { return &Ending{done: make(chan struct{})} }

// Settle says how the machine ended, as Wait is to return it. Only the first time counts, and is reported.
func (e *Ending) Settle(err error) (first bool) {
	e.once.Do(func() {
		e.err, first = err, true
		close(e.done)
	})
	return first
}

// Ended is closed when the machine has ended.
func (e *Ending) Ended() <-chan struct{} { return e.done }

// HasEnded reports whether the machine has ended.
func (e *Ending) HasEnded() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// Wait obeys VM.
func (e *Ending) Wait(ctx context.Context) error {
	select {
	case <-e.done:
		return e.err
	default:
	}
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
