package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/terraphim/tgr/vm"
)

// restoreOrNil restores a machine, or returns nil where that is not possible: a machine that is booted is as good,
// so the reason is for the log. An error is the end of ctx.
func (p *Provider) restoreOrNil(ctx context.Context, a args, s vm.Spec) (*machine, error) {
	if p.cfg.Image.Hash == "" || p.cfg.CacheDir == "" {
		return nil, nil
	}
	g, err := p.goldenOf(ctx, a, s)
	if err == nil && g == nil {
		return nil, nil
	}
	var m *machine
	if err == nil {
		m, err = p.restore(ctx, g, a, s)
	}
	if err != nil && ctx.Err() != nil {
		return nil, &vm.BootError{ID: s.ID, Err: context.Cause(ctx)}
	}
	if err != nil {
		p.cfg.Log.Warn("machine could not be restored from a snapshot, and is booted", "vm", s.ID, "error", err)
		return nil, nil
	}
	return m, nil
}

// restore makes a machine of a snapshot. A snapshot that QEMU does not take is refused from then on.
func (p *Provider) restore(ctx context.Context, g *golden, a args, s vm.Spec) (*machine, error) {
	if m := p.takeSpare(g, s.ID); m != nil {
		err := m.load(ctx)
		switch {
		case err == nil:
			p.spareLater(g, a, s)
			return m, nil
		case ctx.Err() != nil:
			return nil, err
		}
		p.cfg.Log.Warn("an emulator that waited is of no use", "vm", s.ID, "error", err) // which need not be the snapshot's fault
	}
	m, err := p.startFor(ctx, g, a, s)
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx); err != nil {
		if ctx.Err() == nil {
			p.goldens.mu.Lock()
			p.goldens.refuse(g.key)
			p.goldens.mu.Unlock()
		}
		return nil, err
	}
	p.spareLater(g, a, s)
	return m, nil
}

// load has a machine that was started for a snapshot go on from it. After an error nothing of the machine is left.
func (m *machine) load(ctx context.Context) error {
	began := time.Now()
	if err := m.emulator().incoming(ctx); err != nil {
		return errors.Join(m.startError(ctx, err), m.Close())
	}
	m.phase("load the devices", began)
	return nil
}

// startFor starts a machine's emulator, which waits to be told to take the state of a snapshot's devices.
func (p *Provider) startFor(ctx context.Context, g *golden, a args, s vm.Spec) (*machine, error) {
	state, err := reopen(g.state)
	if err != nil {
		return nil, &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	defer state.Close()
	a.Backing, a.Incoming = private, true
	m, err := p.newMachine(ctx, a, s, g.clone)
	if m == nil {
		return nil, err
	}
	if err == nil {
		m.memory = g.memory
		err = m.run(ctx, a, g.memory, state)
	}
	if err != nil {
		return nil, errors.Join(m.startError(ctx, err), m.Close())
	}
	return m, nil
}

// clone makes a copy of the snapshot's disk. It is a diskMaker.
func (g *golden) clone(_ context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unpack(f, bytes.NewReader(g.disk), 1<<50), f.Close())
}

// incoming has QEMU take the state of the devices; the machine goes on then.
func (e *emulator) incoming(ctx context.Context) error {
	if err := e.migration(ctx); err != nil {
		return err
	}
	err := e.qmp.execute(ctx, "migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", stateFD)}, nil)
	if err != nil {
		return err
	}
	return e.awaitMigration(ctx, restoreWithin)
}

// awaitMigration waits for the end of a migration.
func (e *emulator) awaitMigration(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err := <-e.migrated:
		return err
	case <-e.done:
		return errors.Join(errors.New("it ended during the migration of its state"), e.err)
	case <-timer.C:
		return fmt.Errorf("the migration of its state did not end within %v", timeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// migration says how the machine is migrated: without the memory, which is in a file, and telling when it is done.
func (e *emulator) migration(ctx context.Context) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return e.qmp.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}},
	}, nil)
}
