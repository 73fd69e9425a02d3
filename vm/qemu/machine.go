package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

const (
	provider     = "qemu" // our name in the journal
	closeTimeout = 30 * time.Second
)

var (
	errClosed = errors.New("the machine was closed")
	errReset  = errors.New("the guest reset the machine: its kernel panicked, or it rebooted")
	errNoBoot = errors.New("the machine powered off before its agent was ready")
)

// machine is a virtual machine. Its fields above mu are set before it is shared.
type machine struct {
	*vm.Ending
	isolation string
	binary    string
	args      args // of a machine that goes on from a snapshot of this one
	rec       *vm.Record
	adopted   bool // it was started by an earlier server
	boot      time.Duration
	phases    []vm.Phase    // of boot
	dir       *os.File      // the machine's folder; sockets are reached through it whatever its path's length
	console   vm.Console    // what the guest wrote
	memory    *os.File      // what its memory is mapped from: its own if that is shared, otherwise a golden snapshot's
	slot      *network.Slot // nil: it has no network of its own
	cgroup    *vm.Cgroup    // nil: it has no limits

	snapshots snapshots

	mu     sync.Mutex
	conn   net.Conn  // the last one of Dial
	fresh  bool      // conn is the stream that the machine began with, for the next Dial to return
	emu    *emulator // nil: none was started
	paused bool      // for a rollback: the end of emu is not the machine's
	closed bool      // Close was called

	closeOnce sync.Once
	closeErr  error
}

var (
	_ vm.VM          = (*machine)(nil)
	_ vm.Infoer      = (*machine)(nil)
	_ vm.Networked   = (*machine)(nil)
	_ vm.Yielder     = (*machine)(nil)
	_ vm.Snapshotter = (*machine)(nil)
	_ vm.Survivor    = (*machine)(nil)
)

// newMachine journals a machine and gives it its folder, its network and its disk. The caller closes it, also when
// that has failed.
func (p *Provider) newMachine(ctx context.Context, a args, s vm.Spec, disk diskMaker) (m *machine, err error) {
	binary, err := p.lookBinary()
	if err != nil {
		return nil, err
	}
	rec, err := p.cfg.Journal.Open(s.ID, provider)
	if err != nil {
		return nil, &vm.InfraError{Op: "qemu: journal", Err: err}
	}
	m = &machine{isolation: a.isolation(), binary: binary, args: a, rec: rec, Ending: vm.NewEnding()}
	if err := p.connect(ctx, m); err != nil {
		return m, err
	}
	if p.cfg.Cgroups != nil {
		if m.cgroup, err = p.cfg.Cgroups.Make(rec, a.limits()); err != nil {
			return m, &vm.InfraError{Op: "qemu: limits", Err: err}
		}
	}
	began := time.Now()
	if err := disk(ctx, m.diskPath(), orDefault(s.Disk, p.cfg.Disk)); err != nil {
		return m, &vm.InfraError{Op: "qemu: overlay disk", Err: err}
	}
	if m.dir, err = os.Open(m.rec.Dir()); err != nil {
		return m, &vm.InfraError{Op: "qemu: machine's folder", Err: err}
	}
	m.phase("make the disk", began)
	return m, nil
}

func (m *machine) diskPath() string { return filepath.Join(m.rec.Dir(), overlayFile) }

// phase notes what a part of the start took.
func (m *machine) phase(name string, began time.Time) {
	if m.boot == 0 {
		m.phases = append(m.phases, vm.Phase{Name: name, Took: time.Since(began)})
	}
}

// install makes e the machine's emulator: its end is the machine's, unless it makes room for another.
func (m *machine) install(e *emulator) {
	m.mu.Lock()
	m.emu, m.paused = e, false
	m.mu.Unlock()
	go func() {
		<-e.done
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.emu == e && !m.paused {
			m.Settle(e.err)
		}
	}()
}

// emulator is the one that runs now, or that ran last.
func (m *machine) emulator() *emulator {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.emu
}

// listen makes a listening socket in the machine's folder; it stays when the returned descriptor is closed.
func (m *machine) listen(name string) (*os.File, error) {
	os.Remove(filepath.Join(m.rec.Dir(), name)) // of the emulator before
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.socketPath(name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

func (m *machine) socketPath(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.dir.Fd(), name)
}

func (m *machine) dialSocket(ctx context.Context, name string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", m.socketPath(name))
}

// startError makes err one of the two kinds that vm.Provider promises. When ctx has ended, its cause is all there
// is to say.
func (m *machine) startError(ctx context.Context, err error) error {
	var infra *vm.InfraError
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if errors.As(err, &infra) {
		return err
	}
	var boot *vm.BootError
	if errors.As(err, &boot) {
		err = boot.Err
	}
	return &vm.BootError{ID: m.rec.ID(), Console: m.console.String(), Err: err}
}

// Dial opens the stream to the agent and ends the one before. What the agent wrote while no stream was open is
// lost. It obeys vm.VM.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.HasEnded() {
		return nil, fmt.Errorf("dial machine %s: it has ended", m.rec.ID())
	}
	if m.closed {
		return nil, fmt.Errorf("dial machine %s: %w", m.rec.ID(), errClosed)
	}
	if m.fresh && m.conn != nil {
		m.fresh = false
		return m.conn, nil
	}
	if m.conn != nil {
		m.conn.Close() // QEMU serves one client at a time, and takes the next when this one is gone
	}
	conn, err := m.dialSocket(ctx, agentSocket)
	if err != nil {
		return nil, fmt.Errorf("dial machine %s: %w", m.rec.ID(), err)
	}
	m.conn = conn
	return conn, nil
}

// beginStream opens the stream that the next Dial returns.
func (m *machine) beginStream(ctx context.Context) error {
	conn, err := m.dialSocket(ctx, agentSocket)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.conn, m.fresh = conn, true
	m.mu.Unlock()
	return nil
}

// Close obeys vm.VM. It waits until the process is gone and the folder removed.
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		e := m.emu
		if m.conn != nil {
			m.conn.Close()
		}
		if e != nil {
			e.mu.Lock()
			e.ending = true
			e.mu.Unlock()
		}
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		m.closeErr = m.rec.Free(ctx)
		if e != nil {
			e.end() // the journal has killed it, unless it failed
			<-m.Ended()
		}
		if (m.adopted || m.args.Backing == shared) && m.memory != nil {
			m.memory.Close()
		}
		if m.dir != nil {
			m.dir.Close()
		}
		m.closeErr = errors.Join(m.closeErr, m.slot.Close())
		if m.closeErr != nil {
			m.closeErr = &vm.InfraError{Op: "qemu: close machine " + m.rec.ID(), Err: m.closeErr}
		}
	})
	return m.closeErr
}

// SetEgress obeys vm.Networked.
func (m *machine) SetEgress(id string, e vm.Egress) error { return m.slot.SetEgress(id, e) }

// Yield obeys vm.Yielder. A machine without a control group goes on as it is.
func (m *machine) Yield(back bool) error { return m.cgroup.Yield(back) }

// Info describes the machine.
func (m *machine) Info() vm.Info {
	i := vm.Info{ID: m.rec.ID(), Isolation: m.isolation, Boot: m.boot, Phases: m.phases, Console: m.console.String()}
	if e := m.emulator(); e != nil {
		i.PID = e.process.Pid
	}
	return i
}
