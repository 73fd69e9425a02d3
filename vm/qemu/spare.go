package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
)

// spares is at most one spare of a provider: a machine under a name of no job's, whose emulator waits for the state of a
// snapshot's devices. To start it, most of which is that its libraries are linked, is half of what a restore takes, and
// the half that can be done before it is known for whom. Its zero value is ready for use.
type spares struct {
	making sync.Mutex // held while one is made

	mu     sync.Mutex
	ready  *machine
	of     *golden     // ready's
	later  *time.Timer // makes the next one
	closed bool
}

// spareAfter is for how long no machine may have been restored before the next spare is made: nobody waits for it, and who
// comes together with others waits for the processors.
const spareAfter = 300 * time.Millisecond

// errNoSnapshot is Prestart's where Warm was not called, or did not succeed.
var errNoSnapshot = errors.New("qemu: there is no snapshot of such machines")

// Prestart starts the emulator of the next machine of s's size that Start restores, unless one waits for it already. One
// waits at a time: that of another size ends. It takes 12 MB of memory, which is in no pool's budget, and ends with Close.
// With Config.Spare every restore is followed by one.
func (p *Provider) Prestart(ctx context.Context, s vm.Spec) error {
	a, err := p.argsFor(ctx, s)
	if err != nil {
		return err
	}
	g, err := p.goldenOf(ctx, a, s)
	if err == nil && g == nil {
		err = errNoSnapshot
	}
	if err != nil {
		return err
	}
	return p.makeSpare(ctx, g, a, s)
}

// spareLater has a spare made for a machine like this one when it has been quiet for a while.
func (p *Provider) spareLater(g *golden, a args, s vm.Spec) {
	if !p.cfg.Spare {
		return
	}
	sp := &p.spares
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.closed {
		return
	}
	if sp.later != nil {
		sp.later.Stop()
	}
	sp.later = time.AfterFunc(spareAfter, func() {
		ctx, cancel := context.WithTimeout(context.Background(), restoreWithin)
		defer cancel()
		if err := p.makeSpare(ctx, g, a, s); err != nil {
			p.cfg.Log.Warn("no emulator waits for the next machine", "error", err)
		}
	})
}

// makeSpare makes a spare for machines of the snapshot, unless there is one or the provider was closed.
func (p *Provider) makeSpare(ctx context.Context, g *golden, a args, s vm.Spec) error {
	sp := &p.spares
	sp.making.Lock()
	defer sp.making.Unlock()
	sp.mu.Lock()
	enough := sp.closed || sp.ready != nil && sp.of == g && !sp.ready.HasEnded()
	sp.mu.Unlock()
	if enough {
		return nil
	}
	s.ID = "spare-" + rand.Text()[:8]
	m, err := p.startFor(ctx, g, a, s)
	if err != nil {
		return err
	}
	sp.mu.Lock()
	if !sp.closed {
		m, sp.ready, sp.of = sp.ready, m, g
	}
	sp.mu.Unlock()
	if m != nil { // the one before, or this one, which comes too late
		return m.Close()
	}
	return nil
}

// takeSpare gives the spare that waits for a machine of this snapshot the machine's id, and returns it; nil: there is none.
func (p *Provider) takeSpare(g *golden, id string) *machine {
	began := time.Now()
	sp := &p.spares
	sp.mu.Lock()
	m := sp.ready
	if m == nil || sp.of != g {
		sp.mu.Unlock()
		return nil
	}
	sp.ready, sp.of = nil, nil
	sp.mu.Unlock()
	err := errors.New("its emulator has ended")
	if !m.HasEnded() {
		err = m.rec.Rename(id)
	}
	if err != nil {
		p.cfg.Log.Warn("an emulator that waited is of no use", "vm", id, "error", errors.Join(err, m.Close()))
		return nil
	}
	m.phases = nil // were nobody's wait
	m.phase("take an emulator that has started", began)
	return m
}

// Close ends the emulator that waits for a machine. Machines are their owners' to close, and may be started also later.
func (p *Provider) Close() error {
	sp := &p.spares
	sp.mu.Lock()
	sp.closed = true
	if sp.later != nil {
		sp.later.Stop()
	}
	sp.mu.Unlock()
	sp.making.Lock()
	defer sp.making.Unlock()
	sp.mu.Lock()
	m := sp.ready
	sp.ready, sp.of = nil, nil
	sp.mu.Unlock()
	if m == nil {
		return nil
	}
	if err := m.Close(); err != nil {
		return fmt.Errorf("qemu: end the emulator that waits: %w", err)
	}
	return nil
}
