package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// stopSignal is the cause of a context that ended because somebody asked this process to.
type stopSignal struct{ os.Signal }

// Error names the signal.
func (s stopSignal) Error() string { return s.String() }

// Is makes it a cancellation.
func (s stopSignal) Is(target error) bool { return target == context.Canceled }

// notifyStop returns a context that ends with SIGINT or SIGTERM. stop frees what it took.
func notifyStop(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			cancel(stopSignal{s})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// followed reports whether the server that ctx is of was asked to end in the way of service managers, which start it again:
// by SIGTERM. Whoever presses ctrl-C wants everything to end.
func followed(ctx context.Context) bool {
	s, ok := errors.AsType[stopSignal](context.Cause(ctx))
	return ok && s.Signal == syscall.SIGTERM
}
