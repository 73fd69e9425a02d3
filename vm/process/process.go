// Package process starts the agent as a child process: a machine without any isolation. What runs in it runs
// as the user who runs the server, sees the host's files and shares its kernel. It is for development, for tests,
// and for who asks for it by name.
package process

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/terraphim/tgr/vm"
)

// Isolation is what Info says of these machines.
const Isolation = "process"

// consoleTail is how much of the agent's complaints Info and BootError show, in bytes.
const consoleTail = 4 << 10

// politeWithin is what the agent gets to end by itself, before it is killed.
const politeWithin = 300 * time.Millisecond

// freeWithin bounds the clean-up of a machine.
const freeWithin = 20 * time.Second

// Config says how machines are started.
type Config struct {
	// Agent is the agent's program and its first arguments: {"/usr/lib/tgr/tgr-guest"}, or a program that has
	// the agent built in: {"/usr/bin/tgr", "guest"}. "-fd 3" is added.
	Agent []string
	Dir   string // for the journal and the machines' files
	// Scratch is where each machine gets a folder for small files that come and go, best in memory; "": it gets none.
	Scratch string
	// Volatile is the journal's: nothing in Dir has to outlive a power failure.
	Volatile bool
	// Guard says that the machines are of no use when this process has ended. Then it becomes the subreaper that inherits
	// what an agent leaves when a job kills it; otherwise each agent runs below a process of its own that does, and that
	// takes as long to start as the agent. All other children of this process must share its session.
	Guard bool
}

// Provider starts processes as machines. It is safe for concurrent use.
type Provider struct {
	cfg     Config
	journal vm.Journal
	flock   flock
}

var (
	_ vm.Provider = (*Provider)(nil)
	_ vm.VM       = (*Machine)(nil)
	_ vm.Infoer   = (*Machine)(nil)
)

// New returns a provider. It does nothing until Start.
func New(cfg Config) *Provider {
	return &Provider{cfg: cfg, journal: vm.Journal{Dir: cfg.Dir, Volatile: cfg.Volatile}}
}

// Journal returns the journal of the machines, for Reap.
func (p *Provider) Journal() vm.Journal { return p.journal }

// Start starts an agent in a session of its own, so that it outlives the server. VCPUs, Memory and Disk of the
// Spec are the host's.
func (p *Provider) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if len(p.cfg.Agent) == 0 {
		return nil, &vm.InfraError{Op: "start machine " + s.ID, Err: errors.New("no agent is configured")}
	}
	record, err := p.journal.Open(s.ID, Isolation)
	if err != nil {
		return nil, &vm.InfraError{Op: "start machine " + s.ID, Err: err}
	}
	m := &Machine{id: s.ID, record: record, died: make(chan struct{})}
	if p.cfg.Guard {
		m.flock = &p.flock
	}
	err = m.makeScratch(p.cfg.Scratch)
	if err == nil {
		err = m.start(p.cfg)
	}
	if err != nil {
		close(m.died)
		return nil, &vm.InfraError{Op: "start machine " + s.ID, Err: errors.Join(err, m.Close())}
	}
	return m, nil
}

// Machine is an agent that runs. Its methods are safe for concurrent use.
type Machine struct {
	id      string
	record  *vm.Record
	scratch string
	boot    time.Duration
	pid     int
	agent   *os.Process // nil: it was not started
	flock   *flock      // nil: the agent has a guard of its own

	died chan struct{} // closed when err is set
	err  error         // how the agent ended, nil for status 0

	closing sync.Mutex // held by Close
	mu      sync.Mutex
	closed  bool
}

// makeScratch makes the machine's folder in a place that others write to as well.
func (m *Machine) makeScratch(dir string) error {
	if dir == "" {
		return nil
	}
	name := filepath.Join(dir, "tgr-"+rand.Text())
	if err := m.record.AddPath(name); err != nil {
		return err
	}
	m.scratch = name
	return os.Mkdir(name, 0o700)
}

// start makes the machine's files and the socket that the agent listens on, then the agent.
func (m *Machine) start(cfg Config) error {
	begin := time.Now()
	if err := os.Mkdir(m.Home(), 0o700); err != nil {
		return err
	}
	console, err := os.OpenFile(m.file("console.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	listener, err := m.listen()
	if err != nil {
		return err
	}
	defer listener.Close()

	cmd := exec.Command(cfg.Agent[0], append(slices.Clone(cfg.Agent[1:]), "-fd", "3")...)
	if m.flock != nil {
		cmd.Args = append(cmd.Args, "-child")
	}
	cmd.Dir = m.Home()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.Home(), m.record.Env()}
	cmd.Stdout, cmd.Stderr = console, console // a file: nobody needs to read it for the agent to go on
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := m.flock.add(cmd); err != nil {
		return err
	}
	m.pid, m.agent = cmd.Process.Pid, cmd.Process
	journalled := m.record.AddProcess(m.pid)
	m.boot = time.Since(begin)
	if journalled != nil {
		cmd.Process.Kill()
		return errors.Join(journalled, cmd.Wait())
	}
	go func() {
		m.err = cmd.Wait()
		m.flock.remove(m.pid)
		close(m.died)
	}()
	return nil
}

// listen returns a listening socket, to be inherited. It is the host's until the agent has it, so that who dials
// never comes too early.
func (m *Machine) listen() (*os.File, error) {
	dir, path, err := m.socket()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// socket returns a short name of the agent's socket, which is good while dir is open: a socket's path has 107
// bytes.
func (m *Machine) socket() (dir *os.File, path string, err error) {
	if dir, err = os.Open(m.record.Dir()); err != nil {
		return nil, "", err
	}
	return dir, "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/agent.sock", nil
}

func (m *Machine) file(name string) string { return filepath.Join(m.record.Dir(), name) }

// Home is the machine's own folder, empty at first; it goes with the machine.
func (m *Machine) Home() string { return m.file("home") }

// Scratch is the machine's folder in Config.Scratch; it goes with the machine. "" if there is none.
func (m *Machine) Scratch() string { return m.scratch }

// Dial opens a stream to the agent, which ends the one before.
func (m *Machine) Dial(ctx context.Context) (net.Conn, error) {
	dir, path, err := m.socket()
	if err != nil {
		return nil, &vm.InfraError{Op: "dial machine " + m.id, Err: err}
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &vm.InfraError{Op: "dial machine " + m.id, Err: err}
	}
	return conn, nil
}

// Wait returns when the agent has ended: nil if it did so by itself or by Close, a *vm.BootError otherwise.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.died:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil || m.closed {
		return nil
	}
	return &vm.BootError{ID: m.id, Console: m.console(), Err: fmt.Errorf("the agent ended: %w", m.err)}
}

// Close kills the agent and all that descends from it, and removes the machine's files. It is idempotent; after
// an error it may be called again.
func (m *Machine) Close() error {
	m.closing.Lock()
	defer m.closing.Unlock()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), freeWithin)
	defer cancel()
	m.terminate()
	if err := m.record.Free(ctx); err != nil {
		return &vm.InfraError{Op: "free machine " + m.id, Err: err}
	}
	<-m.died
	if m.err == nil {
		return nil
	}
	if err := m.flock.endStrays(ctx); err != nil {
		return &vm.InfraError{Op: "free machine " + m.id, Err: err}
	}
	return nil
}

// terminate asks the agent to end, which it does with all that descends from it, and faster than we could find that: what
// is left when it has ended, or did not end in time, is for the journal.
func (m *Machine) terminate() {
	if m.agent == nil || m.agent.Signal(syscall.SIGTERM) != nil {
		return
	}
	late := time.NewTimer(politeWithin)
	defer late.Stop()
	select {
	case <-m.died:
		if m.err == nil { // its word that nothing of what it started, or inherited, is left
			m.record.Ended()
		}
	case <-late.C:
	}
}

// Info describes the machine.
func (m *Machine) Info() vm.Info {
	return vm.Info{ID: m.id, Isolation: Isolation, PID: m.pid, Boot: m.boot, Console: m.console()}
}

// console returns the end of what the agent wrote to its standard error.
func (m *Machine) console() string {
	f, err := os.Open(m.file("console.log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > consoleTail {
		f.Seek(-consoleTail, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, consoleTail))
	return string(bytes.ToValidUTF8(b, []byte("?")))
}
