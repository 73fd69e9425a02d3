package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/terraphim/tgr/vm"
)

// errUnknownExit stands for the status of a process that is not a child of this one.
var errUnknownExit = errors.New("it ended; how, only its own server could have known")

// remembered is what the next server cannot find out otherwise.
type remembered struct {
	Size  vm.Spec `json:"size"`
	UID   int     `json:"uid"`
	Slot  string  `json:"slot,omitempty"` // the name of its network
	Jail  string  `json:"jail"`           // id of the process's jail
	Root  string  `json:"root"`           // of the jail, in the machine's folder
	Jails int     `json:"jails"`          // that there have been
}

// remember writes down what another server needs to adopt the machine, each time that it has another process. Until the first
// time it is reaped.
func (m *machine) remember(j *jail) error {
	root, err := filepath.Rel(m.rec.Dir(), j.root)
	if err != nil {
		return err
	}
	m.mu.Lock()
	r := remembered{Size: m.size, UID: m.uid, Jail: j.id, Root: root, Jails: m.jails}
	m.mu.Unlock()
	if m.slot != nil {
		r.Slot = m.slot.Name()
	}
	if err := m.rec.Remember(r); err != nil {
		return &vm.InfraError{Op: "firecracker: machine's file", Err: err}
	}
	return nil
}

// Adopt takes over a machine whose server has ended. Its earlier snapshots and its console until now are gone. It obeys
// vm.Adopter.
func (p *Provider) Adopt(ctx context.Context, id string) (vm.VM, error) {
	rec, err := p.cfg.Journal.Adopt(id)
	if err != nil {
		return nil, &vm.InfraError{Op: "firecracker: journal", Err: err}
	}
	m := newMachine(p, vm.Spec{ID: id}, rec)
	if err := m.adopt(ctx); err != nil {
		return nil, errors.Join(m.startError(ctx, fmt.Errorf("adopt: %w", err)), m.Close())
	}
	p.cfg.Log.Info("machine adopted", "vm", id, "isolation", m.isolation)
	return m, nil
}

// adopt finds the machine's process and its network, and watches it from now on.
func (m *machine) adopt(ctx context.Context) error {
	var r remembered
	err := m.rec.Recall(provider, &r)
	if err == nil && !filepath.IsLocal(r.Root) {
		err = fmt.Errorf("the folder %q is not in the machine's", r.Root)
	}
	if err != nil {
		return err
	}
	m.size, m.uid, m.jails = r.Size, r.UID, r.Jails
	processes := m.rec.Entry().Processes
	i := slices.IndexFunc(processes, vm.Process.Alive) // those before it were ended by rollbacks
	if i < 0 {
		return errors.New("its process has ended")
	}
	if r.Slot != "" {
		if m.p.cfg.Slots == nil {
			return errors.New("it has a network, which this server does not give to machines")
		}
		if m.slot, err = m.p.cfg.Slots.Adopt(r.Slot); err != nil {
			return err
		}
	}
	j := &jail{id: r.Jail, root: filepath.Join(m.rec.Dir(), r.Root), uid: r.UID}
	if j.dir, err = os.Open(j.root); err != nil {
		return err
	}
	proc := newProcess(j)
	if proc.os, err = os.FindProcess(processes[i].PID); err != nil {
		j.close()
		return err
	}
	proc.wait = func() error {
		processes[i].Wait()
		return errUnknownExit
	}
	close(proc.drained)
	m.mu.Lock()
	m.proc = proc
	m.mu.Unlock()
	go m.reap(proc)
	info, err := proc.api.Info(ctx)
	if err == nil && info.State == StatePaused { // the server ended while it took a snapshot
		err = proc.api.Resume(ctx)
	}
	return err
}

// Leave obeys vm.Survivor.
func (m *machine) Leave() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		proc := m.proc
		if m.conn != nil {
			m.conn.Close()
		}
		m.mu.Unlock()
		if proc != nil {
			proc.api.Close()
			proc.jail.close()
		}
		m.slot.Leave()
	})
	return m.closeErr
}
