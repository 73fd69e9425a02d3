package dispatch

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/terraphim/tgr/guest"
)

// sharedVM is a machine whose agent has no machine to itself, and so refuses to be prepared.
type sharedVM struct{}

func (m *sharedVM) Dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go guest.Serve(context.WithoutCancel(ctx), theirs, guest.ServerConfig{})
	return ours, nil
}

func (m *sharedVM) Wait(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
func (m *sharedVM) Close() error                   { return nil }

// A machine that cannot be made one of its own must not wait for a job.
func TestGreeterRefused(t *testing.T) {
	exercised := false
	g := &Greeter{Exercise: func(context.Context, *guest.Client) error { exercised = true; return nil }}
	m := &sharedVM{}
	if err := g.Greet(t.Context(), m); !errors.Is(err, guest.ErrRefused) {
		t.Errorf("got %v", err)
	}
	if exercised || g.take(m) != nil || len(g.clients) != 0 {
		t.Error("it waits all the same")
	}
	var none *Greeter
	if none.take(m) != nil {
		t.Error("nobody has greeted it")
	}
	if a, b := entropy(), entropy(); len(a) < 32 || string(a) == string(b) {
		t.Error("machines share their entropy")
	}
}
