package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

const closeTimeout = 30 * time.Second

var (
	errClosed = errors.New("the machine was closed")
	errReset  = errors.New("the guest reset the machine: its kernel panicked, or it rebooted")
	errNoBoot = errors.New("the machine powered off before its agent was ready")
)

// machine is one QEMU process. Its fields above mu are set before it is shared.
type machine struct {
	id, isolation string
	rec           *vm.Record
	boot          time.Duration
	dir           *os.File // the machine's folder; sockets are reached through it whatever its path's length
	cmd           *exec.Cmd
	qmp           *qmp
	console       vm.Console    // what the guest wrote
	stderr        vm.Console    // what QEMU said
	restored      bool          // from a snapshot
	started       bool          // there is a process, and done will be closed
	inherit       []*os.File    // QEMU's descriptors from ramFD on; the owner is who made the machine
	slot          *network.Slot // nil: it has no network of its own
	ready         chan struct{}
	migrated      chan error    // how a migration ended, to a file or from one
	done          chan struct{} // closed when the process has been waited for and err is settled

	mu     sync.Mutex
	conn   net.Conn // the last one of Dial
	cause  error    // the first fault that an event told of
	off    bool     // the guest powered off
	opened bool     // ready is closed
	closed bool     // Close was called
	err    error    // Wait's, once done is closed

	closeOnce sync.Once
	closeErr  error
}

var (
	_ vm.VM        = (*machine)(nil)
	_ vm.Infoer    = (*machine)(nil)
	_ vm.Networked = (*machine)(nil)
)

func newMachine(id, isolation string, rec *vm.Record) *machine {
	return &machine{id: id, isolation: isolation, rec: rec, ready: make(chan struct{}), migrated: make(chan error, 1), done: make(chan struct{})}
}

// start makes the overlay, the sockets and the process, and opens the control connection.
func (m *machine) start(ctx context.Context, p *Provider, a args, s vm.Spec, overlay diskMaker) error {
	binary, err := p.lookBinary()
	if err != nil {
		return err
	}
	disk := filepath.Join(m.rec.Dir(), overlayFile)
	if err := overlay(ctx, disk, orDefault(s.Disk, p.cfg.Disk)); err != nil {
		return &vm.InfraError{Op: "qemu: overlay disk", Err: err}
	}
	if m.dir, err = os.Open(m.rec.Dir()); err != nil {
		return &vm.InfraError{Op: "qemu: machine's folder", Err: err}
	}
	if err := m.spawn(binary, a.argv()); err != nil {
		return err
	}
	m.started = true
	conn, err := m.dialSocket(ctx, qmpSocket)
	if err == nil {
		m.qmp = newQMP(conn, m.onEvent)
	}
	go m.reap()
	if errors.Is(err, syscall.ECONNREFUSED) {
		<-m.done // nobody listens where QEMU did: its end says more
		return m.err
	}
	if err != nil {
		return &vm.InfraError{Op: "qemu: control socket", Err: err}
	}
	if err := m.rec.AddProcess(m.cmd.Process.Pid); err != nil {
		return &vm.InfraError{Op: "qemu: journal", Err: err}
	}
	if err := m.qmp.execute(ctx, "qmp_capabilities", nil, nil); err != nil && ctx.Err() == nil {
		<-m.done // the process's end says more than the connection's
		return m.err
	}
	return nil
}

// spawn starts QEMU in the machine's folder with its listening sockets, in a session of its own: it outlives the
// server's process group.
func (m *machine) spawn(binary string, argv []string) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, name := range []string{qmpSocket, agentSocket} { // in the order of qmpFD and agentFD
		f, err := m.listen(name)
		if err != nil {
			return &vm.InfraError{Op: "qemu: listen", Err: err}
		}
		files = append(files, f)
	}
	m.cmd = exec.Command(binary, argv...)
	m.cmd.Dir = m.rec.Dir()
	m.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TMPDIR=" + m.rec.Dir(), m.rec.Env()}
	m.cmd.ExtraFiles = append(files[:len(files):len(files)], m.inherit...)
	m.cmd.Stdout, m.cmd.Stderr = &m.console, &m.stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := m.cmd.Start
	if m.slot != nil { // what breaks out of the emulator reaches what the machine does, or less
		start = func() error { return m.slot.Start(m.cmd) }
	}
	if err := start(); err != nil {
		return &vm.InfraError{Op: "qemu: start", Err: err}
	}
	return nil
}

// listen makes a listening socket in the machine's folder; it stays when the returned descriptor is closed.
func (m *machine) listen(name string) (*os.File, error) {
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

// reap waits for the process's end and settles how it ended.
func (m *machine) reap() {
	exit := m.cmd.Wait()
	if m.qmp != nil {
		<-m.qmp.done // its last events may tell why
	}
	m.mu.Lock()
	switch {
	case m.cause == errReset:
		m.err = &vm.BootError{ID: m.id, Console: m.console.String(), Err: errReset} // all of the console was read
	case m.cause != nil:
		m.err = m.cause
	case m.off, m.closed:
		m.err = nil
	default:
		if exit == nil {
			exit = errors.New("ended")
		}
		if said := strings.TrimSpace(m.stderr.String()); said != "" {
			exit = fmt.Errorf("%w: %s", exit, said)
		}
		m.err = &vm.InfraError{Op: "qemu: machine " + m.id, Err: exit}
	}
	m.mu.Unlock()
	close(m.done)
}

// onEvent is called by the control connection's reader.
func (m *machine) onEvent(name string, data json.RawMessage) {
	var d struct {
		Open      bool   `json:"open"`      // VSERPORT_CHANGE
		ID        string `json:"id"`        // VSERPORT_CHANGE
		Reason    string `json:"reason"`    // SHUTDOWN, BLOCK_IO_ERROR
		Node      string `json:"node-name"` // BLOCK_IO_ERROR
		Operation string `json:"operation"` // BLOCK_IO_ERROR
		Status    string `json:"status"`    // MIGRATION
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case "VSERPORT_CHANGE":
		if d.Open && d.ID == portID && !m.opened {
			m.opened = true
			close(m.ready)
		}
	case "MIGRATION":
		m.onMigration(d.Status)
	case "SHUTDOWN":
		if d.Reason == "guest-shutdown" {
			m.off = true
		} else if strings.HasPrefix(d.Reason, "guest") && m.cause == nil {
			m.cause = errReset
		}
	case "BLOCK_IO_ERROR":
		if m.cause == nil {
			m.cause = &vm.InfraError{Op: "qemu: " + d.Operation + " disk " + d.Node, Err: errors.New(d.Reason)}
		}
		m.cmd.Process.Kill() // it is paused, and nothing would ever resume it
	}
}

// onMigration tells how a migration ended.
func (m *machine) onMigration(status string) {
	var err error
	switch status {
	case "completed":
	case "failed", "cancelled":
		err = fmt.Errorf("the migration of its state %s", status)
	default:
		return
	}
	select {
	case m.migrated <- err:
	default:
	}
}

// awaitAgent waits until the agent has opened its port.
func (m *machine) awaitAgent(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-m.ready:
		return nil
	case <-m.done:
		if m.err == nil {
			return errNoBoot
		}
		return m.err
	case <-timer.C:
		return fmt.Errorf("its agent did not open the port within %v", timeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
	return &vm.BootError{ID: m.id, Console: m.console.String(), Err: err}
}

// Dial opens the stream to the agent and ends the one before. What the agent wrote while no stream was open is
// lost. It obeys vm.VM.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return nil, fmt.Errorf("dial machine %s: it has ended", m.id)
	default:
	}
	if m.closed {
		return nil, fmt.Errorf("dial machine %s: %w", m.id, errClosed)
	}
	if m.conn != nil {
		m.conn.Close() // QEMU serves one client at a time, and takes the next when this one is gone
	}
	conn, err := m.dialSocket(ctx, agentSocket)
	if err != nil {
		return nil, fmt.Errorf("dial machine %s: %w", m.id, err)
	}
	m.conn = conn
	return conn, nil
}

// Wait obeys vm.VM.
func (m *machine) Wait(ctx context.Context) error {
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close obeys vm.VM. It waits until the process is gone and the folder removed.
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		if m.conn != nil {
			m.conn.Close()
		}
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		m.closeErr = m.rec.Free(ctx)
		if m.started {
			m.cmd.Process.Kill() // the journal did, unless it failed
			<-m.done
		}
		if m.qmp != nil {
			m.qmp.conn.Close()
		}
		if m.dir != nil {
			m.dir.Close()
		}
		if m.slot != nil {
			m.closeErr = errors.Join(m.closeErr, m.slot.Close())
		}
		if m.closeErr != nil {
			m.closeErr = &vm.InfraError{Op: "qemu: close machine " + m.id, Err: m.closeErr}
		}
	})
	return m.closeErr
}

// SetEgress obeys vm.Networked. A machine without a network of its own has nothing to be changed.
func (m *machine) SetEgress(id string, e vm.Egress) error {
	if m.slot == nil {
		return nil
	}
	return m.slot.SetEgress(id, e)
}

// Info describes the machine.
func (m *machine) Info() vm.Info {
	i := vm.Info{ID: m.id, Isolation: m.isolation, Boot: m.boot, Console: m.console.String()}
	if m.cmd != nil && m.cmd.Process != nil {
		i.PID = m.cmd.Process.Pid
	}
	return i
}
