package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/terraphim/tgr/vm"
)

// errUnknownExit stands for the status of a runtime that is not a child of this process.
var errUnknownExit = errors.New("how, only its own server could have known")

// Adopt takes over a machine whose server has ended. Its console until now is gone. It obeys vm.Adopter.
func (p *Provider) Adopt(ctx context.Context, id string) (vm.VM, error) {
	rec, err := p.cfg.Journal.Adopt(id)
	if err != nil {
		return nil, &vm.InfraError{Op: "container: journal", Err: err}
	}
	m := &machine{id: id, rec: rec, Ending: vm.NewEnding()}
	if err := m.adopt(p); err != nil {
		return nil, errors.Join(m.startError(ctx, fmt.Errorf("adopt: %w", err)), m.Close())
	}
	p.cfg.Log.Info("machine adopted", "vm", id, "isolation", Isolation)
	return m, nil
}

// remembered is what the next server cannot find out otherwise.
type remembered struct {
	PID  int    `json:"pid"`            // of the agent
	Slot string `json:"slot,omitempty"` // the name of its network
}

// remember writes down what another server needs to adopt the machine. Until then it is reaped.
func (m *machine) remember() error {
	r := remembered{PID: m.pid}
	if m.slot != nil {
		r.Slot = m.slot.Name()
	}
	return m.rec.Remember(r)
}

// adopt finds the container's processes and its network, and watches it from now on.
func (m *machine) adopt(p *Provider) error {
	var r remembered
	err := m.rec.Recall(Isolation, &r)
	if err != nil {
		return err
	}
	m.pid = r.PID
	processes := m.rec.Entry().Processes // the runtime, and the agent
	if len(processes) == 0 || slices.ContainsFunc(processes, func(p vm.Process) bool { return !p.Alive() }) {
		return errors.New("it has ended")
	}
	if m.dir, err = os.Open(m.rec.Dir()); err != nil {
		return err
	}
	m.cgroup = vm.FindCgroupDirs(m.rec)
	if r.Slot != "" {
		if p.cfg.Slots == nil {
			return errors.New("it has a network, which this server does not give to machines")
		}
		if m.slot, err = p.cfg.Slots.Adopt(r.Slot); err != nil {
			return err
		}
	}
	if m.runtime, err = os.FindProcess(processes[0].PID); err != nil {
		return err
	}
	m.wait = func() error {
		processes[0].Wait()
		return errUnknownExit
	}
	go m.reap(nil)
	return nil
}
