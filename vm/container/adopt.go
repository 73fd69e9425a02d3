package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// adopt finds the container's processes and its network, and watches it from now on.
func (m *machine) adopt(p *Provider) error {
	e := m.rec.Entry()
	if e.Provider != Isolation {
		return fmt.Errorf("it is a machine of %s", e.Provider)
	}
	started, err := m.findAgent()
	if err != nil {
		return err
	}
	ended := func(p vm.Process) bool { return !p.Alive() }
	if !started || len(e.Processes) == 0 || slices.ContainsFunc(e.Processes, ended) { // the runtime, and the agent
		return errors.New("it has ended, or was never started")
	}
	if m.dir, err = os.Open(m.rec.Dir()); err != nil {
		return err
	}
	m.cgroup = vm.FindCgroupDirs(m.rec)
	name, err := os.ReadFile(filepath.Join(m.rec.Dir(), slotFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case p.cfg.Slots == nil:
		return errors.New("it has a network, which this server does not give to machines")
	default:
		if m.slot, err = p.cfg.Slots.Adopt(string(name)); err != nil {
			return err
		}
	}
	if m.runtime, err = os.FindProcess(e.Processes[0].PID); err != nil {
		return err
	}
	m.wait = func() error {
		e.Processes[0].Wait()
		return errUnknownExit
	}
	go m.reap(nil)
	return nil
}
