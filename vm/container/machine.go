package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

const (
	closeTimeout = 30 * time.Second
	pollEvery    = time.Millisecond // for the file that the runtime is about to write
)

var (
	errClosed = errors.New("the machine was closed")
	errMemory = errors.New("a process of the machine was killed, because the machine's memory was used up")
)

// machine is a container, with the process of the runtime that waits for it. Its fields above mu are set before it is shared.
type machine struct {
	*vm.Ending
	id      string
	rec     *vm.Record
	dir     *os.File // the machine's folder; the socket is reached through it whatever its path's length
	slot    *network.Slot
	cgroup  vm.CgroupDirs
	runtime *os.Process  // waits for the container; nil before it was started. It need not be a child of ours
	wait    func() error // for the runtime's end
	pid     int          // of the agent, on the host
	boot    time.Duration
	console vm.Console

	mu     sync.Mutex
	conn   net.Conn // the last one of Dial
	closed bool

	closeOnce sync.Once
	closeErr  error
}

var (
	_ vm.VM        = (*machine)(nil)
	_ vm.Infoer    = (*machine)(nil)
	_ vm.Networked = (*machine)(nil)
	_ vm.Survivor  = (*machine)(nil)
)

// start makes the machine's files and its container.
func (m *machine) start(ctx context.Context, p *Provider, s vm.Spec) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startWithin, fmt.Errorf("the runtime did not start it within %v", startWithin))
	defer cancel()
	var err error
	if m.dir, err = os.Open(m.rec.Dir()); err != nil {
		return err
	}
	disk := filepath.Join(m.rec.Dir(), diskFile)
	if err := p.cfg.Overlay(ctx, disk, s.Disk); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	netns, files, err := m.connect(ctx, p)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if m.cgroup, err = vm.JournalCgroups(m.rec); err != nil {
		return err
	}
	b, err := p.bundle(s, m.cgroup.Path, netns == "")
	if err != nil {
		return err
	}
	text, err := json.Marshal(b)
	if err == nil {
		err = os.WriteFile(filepath.Join(m.rec.Dir(), bundleFile), text, 0o600)
	}
	if err != nil {
		return err
	}
	if err := m.run(p, parts{disk: disk, root: p.cfg.IDs[0], files: files, netns: netns}); err != nil {
		return err
	}
	if err := m.awaitAgent(ctx); err != nil {
		return err
	}
	return m.remember()
}

// connect gives the machine its network slot, if there are any, which lets nothing through yet.
func (m *machine) connect(ctx context.Context, p *Provider) (netns string, files map[string]string, err error) {
	name := hostname(m.id)
	files = map[string]string{
		"etc/hostname": name + "\n",
		"etc/hosts":    "127.0.0.1\tlocalhost\n127.0.1.1\t" + name + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
	}
	if p.cfg.Slots == nil {
		return "", files, nil
	}
	if m.slot, err = p.cfg.Slots.Acquire(ctx, m.id, vm.Egress{}); err != nil {
		return "", nil, err
	}
	if err := m.rec.AddNeed(m.slot.Needs()...); err != nil {
		return "", nil, err
	}
	files["etc/resolv.conf"] = m.slot.ResolvConf()
	return m.slot.Namespace(), files, nil
}

// run starts the runtime, in a session of its own: it outlives the server's process group.
func (m *machine) run(p *Provider, own parts) error {
	listener, err := m.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	argv := p.argv(m.rec, m.id)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = m.rec.Dir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), m.rec.Env()}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = p.stage.start(cmd, own)
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	m.runtime, m.wait = cmd.Process, cmd.Wait
	go m.reap(r)
	return m.journal(cmd.Process.Pid)
}

// journal writes down a process of the machine. One that has ended already has said why.
func (m *machine) journal(pid int) error {
	err := m.rec.AddProcess(pid)
	if err == nil {
		return nil
	}
	if _, gone := vm.FindProcess(pid); gone != nil {
		<-m.Ended()
		return m.refusal()
	}
	return err
}

// listen makes the socket that the agent inherits: who dials never comes too early.
func (m *machine) listen() (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.socket(), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

func (m *machine) socket() string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.dir.Fd(), socketFile)
}

// reap waits for the container's end and settles how it ended. output is what its processes write to; nil: another server
// had that.
func (m *machine) reap(output *os.File) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if output != nil {
			defer output.Close()
			io.Copy(&m.console, output)
		}
	}()
	exit := m.wait()
	<-drained
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	switch {
	case m.closed, exit == nil:
	case m.cgroup.OutOfMemory():
		err = &vm.BootError{ID: m.id, Console: m.console.String(), Err: errMemory}
	default:
		err = &vm.BootError{ID: m.id, Console: m.console.String(), Err: fmt.Errorf("the agent ended: %w", exit)}
	}
	m.Settle(err)
}

// awaitAgent waits until the runtime has started the agent.
func (m *machine) awaitAgent(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(filepath.Join(m.rec.Dir(), pidFile))
		if err == nil && len(b) > 0 {
			if m.pid, err = strconv.Atoi(string(bytes.TrimSpace(b))); err != nil {
				return fmt.Errorf("the runtime's pid file: %w", err)
			}
			return m.journal(m.pid) // were the runtime killed alone, nobody else would know of it
		}
		select {
		case <-m.Ended():
			return m.refusal()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// refusal is why the runtime has ended.
func (m *machine) refusal() error {
	said := strings.TrimSpace(m.console.String())
	if said == "" {
		return errors.New("the runtime ended without a word")
	}
	return errors.New(said)
}

// startError makes err one of the two kinds that vm.Provider promises: that there is no container is the host's fault.
func (m *machine) startError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &vm.BootError{ID: m.id, Console: m.console.String(), Err: context.Cause(ctx)}
	}
	return &vm.InfraError{Op: "container: start machine " + m.id, Err: err}
}

// Dial opens the stream to the agent and ends the one before. It obeys vm.VM.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("dial machine %s: %w", m.id, errClosed)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", m.socket())
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &vm.InfraError{Op: "dial machine " + m.id, Err: err}
	}
	m.conn = conn // the agent ends the one before
	return conn, nil
}

// hangUp closes the stream, for who lets go of the machine.
func (m *machine) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.conn != nil {
		m.conn.Close()
	}
}

// Close obeys vm.VM.
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		m.hangUp()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		m.closeErr = m.rec.Free(ctx)
		if m.runtime != nil {
			m.runtime.Kill() // the journal did, unless it failed
			<-m.Ended()
		} else {
			m.Settle(nil)
		}
		if m.dir != nil {
			m.dir.Close()
		}
		m.closeErr = errors.Join(m.closeErr, m.slot.Close())
		if m.closeErr != nil {
			m.closeErr = &vm.InfraError{Op: "container: close machine " + m.id, Err: m.closeErr}
		}
	})
	return m.closeErr
}

// Leave obeys vm.Survivor.
func (m *machine) Leave() error {
	m.closeOnce.Do(func() {
		m.hangUp()
		m.slot.Leave()
		m.closeErr = m.dir.Close()
	})
	return m.closeErr
}

// SetEgress obeys vm.Networked.
func (m *machine) SetEgress(id string, e vm.Egress) error { return m.slot.SetEgress(id, e) }

// Info describes the machine.
func (m *machine) Info() vm.Info {
	return vm.Info{ID: m.id, Isolation: Isolation, PID: m.pid, Boot: m.boot, Console: m.console.String()}
}
