package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// remembered is what the next server cannot find out otherwise.
type remembered struct {
	Args args   `json:"args"`
	Slot string `json:"slot,omitempty"` // the name of its network
}

// remember writes down what another server needs to adopt the machine. Until then it is reaped.
func (m *machine) remember() error {
	r := remembered{Args: m.args}
	if m.slot != nil {
		r.Slot = m.slot.Name()
	}
	return m.rec.Remember(r)
}

// Adopt takes over a machine whose server has ended. Its earlier snapshots and its console until now are gone. It obeys
// vm.Adopter.
func (p *Provider) Adopt(ctx context.Context, id string) (vm.VM, error) {
	rec, err := p.cfg.Journal.Adopt(id)
	if err != nil {
		return nil, &vm.InfraError{Op: "qemu: journal", Err: err}
	}
	m := &machine{rec: rec, adopted: true, Ending: vm.NewEnding()}
	if err := p.adopt(ctx, m); err != nil {
		return nil, errors.Join(m.startError(ctx, fmt.Errorf("adopt: %w", err)), m.Close())
	}
	p.cfg.Log.Info("machine adopted", "vm", id, "isolation", m.isolation)
	return m, nil
}

func (p *Provider) adopt(ctx context.Context, m *machine) (err error) {
	var r remembered
	if err := m.rec.Recall(provider, &r); err != nil {
		return err
	}
	m.args = r.Args
	m.args.Image.Overlay = p.cfg.Image.Overlay
	m.isolation = m.args.isolation()
	if m.binary, err = p.lookBinary(); err != nil {
		return err
	}
	if m.dir, err = os.Open(m.rec.Dir()); err != nil {
		return err
	}
	if p.cfg.Cgroups != nil {
		m.cgroup = p.cfg.Cgroups.Find(m.rec)
	}
	if r.Slot != "" {
		if p.cfg.Slots == nil {
			return errors.New("it has a network, which this server does not give to machines")
		}
		if m.slot, err = p.cfg.Slots.Adopt(r.Slot); err != nil {
			return err
		}
	}
	return m.resume(ctx)
}

// resume finds the machine's emulator, and watches it from now on.
func (m *machine) resume(ctx context.Context) error {
	processes := m.rec.Entry().Processes
	i := slices.IndexFunc(processes, vm.Process.Alive) // those before it were ended by rollbacks
	if i < 0 {
		return errors.New("its emulator has ended")
	}
	process, err := os.FindProcess(processes[i].PID)
	if err != nil {
		return err
	}
	e := &emulator{m: m, process: process, wait: func() error { processes[i].Wait(); return nil },
		ready: make(chan struct{}), migrated: make(chan error, 1), done: make(chan struct{})}
	// For the emulator of a rollback, which inherits them as this one did.
	if m.memory, err = fileOf(process.Pid, func(fd int, _ string) bool { return fd == ramFD }); err != nil {
		return fmt.Errorf("its memory: %w", err)
	}
	if m.slot != nil {
		tap, err := fileOf(process.Pid, func(_ int, file string) bool { return file == "/dev/net/tun" })
		if err != nil {
			return fmt.Errorf("its network device: %w", err)
		}
		m.slot.SetTap(tap)
	}
	conn, err := m.dialSocket(ctx, qmpSocket)
	if err != nil {
		return fmt.Errorf("its control socket: %w", err)
	}
	e.qmp = newQMP(conn, e.onEvent)
	m.install(e)
	go e.reap()
	if err := e.qmp.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return err
	}
	var status struct{ Running bool }
	if err := e.qmp.execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if !status.Running { // the server ended while it took a snapshot
		return e.qmp.execute(ctx, "cont", nil, nil)
	}
	return nil
}

// fileOf duplicates a descriptor of another process. The caller closes it.
func fileOf(pid int, is func(fd int, file string) bool) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		fd, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		name, err := os.Readlink(filepath.Join(dir, d.Name()))
		if err != nil || !is(fd, name) {
			continue
		}
		mine, err := unix.PidfdGetfd(pidfd, fd, 0)
		if err != nil {
			return nil, os.NewSyscallError("pidfd_getfd", err)
		}
		return os.NewFile(uintptr(mine), name), nil
	}
	return nil, errors.New("the emulator does not have it open")
}

// Leave obeys vm.Survivor.
func (m *machine) Leave() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		if m.conn != nil {
			m.conn.Close()
		}
		e := m.emu
		m.mu.Unlock()
		if e != nil {
			e.qmp.conn.Close() // its next client is the next server
		}
		m.slot.Leave()
	})
	return m.closeErr
}
