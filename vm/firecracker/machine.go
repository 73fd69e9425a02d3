package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

const (
	closeTimeout = 30 * time.Second
	// pollEvery is how often a socket is tried that is about to appear.
	pollEvery = 2 * time.Millisecond
)

var (
	errClosed = errors.New("the machine was closed")
	errPanic  = errors.New("its kernel panicked")
	errSoon   = errors.New("the process ended before its machine was ready")
)

// machine is a Firecracker process with its jail; a rollback replaces both.
type machine struct {
	*vm.Ending
	p             *Provider
	id, isolation string
	size          vm.Spec
	rec           *vm.Record
	uid           int
	slot          *network.Slot // nil: it has no network
	boot          time.Duration
	restored      bool       // from a golden snapshot
	console       vm.Console // what the guest wrote, and what the process said
	rolling       sync.Mutex // held by Snapshot and Rollback, one at a time
	snapshots     []taken    // guarded by rolling

	mu     sync.Mutex
	proc   *process // the current one; nil before the first
	jails  int      // that there have been
	conn   net.Conn // the last one of Dial
	closed bool     // Close was called

	closeOnce sync.Once
	closeErr  error
}

var (
	_ vm.VM          = (*machine)(nil)
	_ vm.Infoer      = (*machine)(nil)
	_ vm.Snapshotter = (*machine)(nil)
	_ vm.Networked   = (*machine)(nil)
	_ vm.Survivor    = (*machine)(nil)
)

// process is one process of a machine.
type process struct {
	jail    *jail
	os      *os.Process  // which need not be a child of ours
	wait    func() error // for its end
	api     *Client
	spare   bool          // it is being replaced: its end is not the machine's. Guarded by the machine's mu
	drained chan struct{} // closed when all that it wrote was read
	exited  chan struct{} // closed when err is set
	err     error
}

func newMachine(p *Provider, s vm.Spec, rec *vm.Record) *machine {
	return &machine{p: p, id: s.ID, isolation: p.isolation(), size: s, rec: rec, uid: -1, Ending: vm.NewEnding()}
}

// launch makes the machine's process, and returns when the agent in it accepts connections.
func (m *machine) launch(ctx context.Context, do plan) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.p.cfg.BootTimeout, fmt.Errorf("its agent did not answer within %v", m.p.cfg.BootTimeout))
	defer cancel()
	if err := m.prepare(ctx); err != nil {
		return &vm.InfraError{Op: "firecracker: user and network of the machine", Err: err}
	}
	proc, err := m.spawn(ctx, do)
	if err != nil {
		return err
	}
	if err := proc.await(ctx); err != nil {
		return err
	}
	if err := do.run(ctx, proc.api); err != nil {
		return proc.blame(ctx, err)
	}
	await := do.await
	if await == nil {
		await = func(ctx context.Context, proc *process) error { return proc.awaitAgent(ctx) }
	}
	if err := await(ctx, proc); err != nil {
		return err
	}
	return m.remember(proc.jail)
}

// prepare settles who the machine is, and connects it to a network that lets nothing through yet. A machine that is
// rolled back has done it before.
func (m *machine) prepare(ctx context.Context) (err error) {
	if m.uid < 0 {
		if m.uid, err = m.p.reserveUID(m.rec); err != nil {
			return err
		}
	}
	if m.p.cfg.Slots == nil || m.slot != nil {
		return nil
	}
	if m.slot, err = m.p.cfg.Slots.Acquire(ctx, m.id, vm.Egress{}); err != nil {
		return err
	}
	if err := m.rec.AddNeed(m.slot.Needs()...); err != nil {
		return err
	}
	uid := m.uid
	if uid < 0 {
		uid = os.Geteuid()
	}
	return m.slot.HandOver(uid)
}

// SetEgress obeys vm.Networked.
func (m *machine) SetEgress(id string, e vm.Egress) error { return m.slot.SetEgress(id, e) }

// spawn makes the jail and the process.
func (m *machine) spawn(ctx context.Context, do plan) (*process, error) {
	m.mu.Lock()
	n := m.jails
	m.jails++
	m.mu.Unlock()
	j, err := m.p.newJail(m.rec, m.id, n, m.uid)
	if err == nil {
		if err = do.files(ctx, j); err != nil {
			j.close()
		}
	}
	if err != nil {
		return nil, &vm.InfraError{Op: "firecracker: files of the machine", Err: err}
	}
	start, netns := func(cmd *exec.Cmd) error { return cmd.Start() }, ""
	if m.slot != nil {
		netns, start = m.slot.Namespace(), m.slot.Start // where there is no jailer to enter it
	}
	proc := newProcess(j)
	cmd := m.p.command(j, m.size, m.rec, netns)
	r, w, err := os.Pipe()
	if err != nil {
		j.close()
		return nil, &vm.InfraError{Op: "firecracker: console", Err: err}
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = start(cmd)
	w.Close()
	if err != nil {
		r.Close()
		j.close()
		return nil, &vm.InfraError{Op: "firecracker: start", Err: err}
	}
	proc.os, proc.wait = cmd.Process, cmd.Wait
	go func() {
		defer close(proc.drained)
		defer r.Close()
		io.Copy(&m.console, r)
	}()
	m.mu.Lock()
	m.proc = proc
	closed := m.closed
	m.mu.Unlock()
	go m.reap(proc)
	if closed {
		proc.os.Kill()
		return nil, errClosed
	}
	if err := m.rec.AddProcess(proc.os.Pid); err != nil {
		if _, gone := vm.FindProcess(proc.os.Pid); gone != nil {
			<-proc.exited // its end says more
			return nil, proc.blame(ctx, errSoon)
		}
		return nil, &vm.InfraError{Op: "firecracker: journal", Err: err}
	}
	return proc, nil
}

func newProcess(j *jail) *process {
	return &process{
		jail: j, drained: make(chan struct{}), exited: make(chan struct{}),
		api: NewClient(func(ctx context.Context) (net.Conn, error) { return j.dial(ctx, apiSocket) }),
	}
}

// reap waits for a process's end and settles how its machine ended, unless another process takes over.
func (m *machine) reap(proc *process) {
	proc.err = proc.wait()
	<-proc.drained // the guest's last words may tell why
	proc.api.Close()
	close(proc.exited)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !proc.spare {
		m.end(proc.err)
	}
}

// end settles how the machine ended; m.mu is held.
func (m *machine) end(exit error) {
	var err error
	switch {
	case m.closed:
	case strings.Contains(m.console.String(), "Kernel panic - not syncing"):
		err = &vm.BootError{ID: m.id, Console: m.console.String(), Err: errPanic} // the process exits with 0 then as well
	case exit != nil:
		if said := lastLine(m.console.String()); said != "" {
			exit = fmt.Errorf("%w: %s", exit, said)
		}
		err = &vm.InfraError{Op: "firecracker: machine " + m.id, Err: exit}
	}
	m.Settle(err)
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// await waits for the API socket, and refuses a version that is too old.
func (proc *process) await(ctx context.Context) error {
	if err := proc.poll(ctx, func() error {
		conn, err := proc.jail.dial(ctx, apiSocket)
		if err == nil {
			conn.Close()
		}
		return err
	}); err != nil {
		return err
	}
	version, err := proc.api.Version(ctx)
	if err != nil {
		return proc.blame(ctx, err)
	}
	if err := supported(version); err != nil {
		return &vm.InfraError{Op: "firecracker", Err: err}
	}
	return nil
}

// poll tries until it succeeds, or the process or ctx ends.
func (proc *process) poll(ctx context.Context, try func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-proc.exited:
			return proc.blame(ctx, errSoon)
		case <-tick.C:
		}
	}
}

// blame prefers how the process ended to what was noticed because of it.
func (proc *process) blame(ctx context.Context, err error) error {
	select {
	case <-proc.exited:
		if proc.err != nil {
			return fmt.Errorf("%w (%w)", err, proc.err)
		}
	default:
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return err
}

// awaitAgent waits until the agent accepts connections.
func (proc *process) awaitAgent(ctx context.Context) error {
	return proc.poll(ctx, func() error {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		conn, err := connect(try, proc.jail)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// connect opens a stream to the agent: the process is asked for a port of the guest, and answers when that accepts.
//
// https://github.com/firecracker-microvm/firecracker/blob/v1.16.1/docs/vsock.md
func connect(ctx context.Context, j *jail) (net.Conn, error) {
	conn, err := j.dial(ctx, agentSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err = fmt.Fprintf(conn, "CONNECT %d\n", agentPort); err == nil {
		err = readOK(conn)
	}
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// readOK reads "OK 1234\n", and nothing of what the agent says after it.
func readOK(r io.Reader) error {
	var line [32]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			return fmt.Errorf("the agent's port does not accept: %w", err)
		}
		if line[n] == '\n' {
			if !bytes.HasPrefix(line[:n], []byte("OK ")) {
				return fmt.Errorf("the vsock device says %q, not OK", line[:n])
			}
			return nil
		}
	}
	return errors.New("the vsock device says more than OK")
}

// startError makes err one of the two kinds that vm.Provider promises.
func (m *machine) startError(ctx context.Context, err error) error {
	var infra *vm.InfraError
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if errors.As(err, &infra) {
		return err
	}
	return &vm.BootError{ID: m.id, Console: m.console.String(), Err: err}
}

// Dial opens the stream to the agent and ends the one before. It obeys vm.VM.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	proc, closed := m.proc, m.closed
	m.mu.Unlock()
	switch {
	case closed:
		return nil, fmt.Errorf("dial machine %s: %w", m.id, errClosed)
	case m.HasEnded():
		return nil, fmt.Errorf("dial machine %s: it has ended", m.id)
	}
	conn, err := connect(ctx, proc.jail)
	if err != nil {
		return nil, fmt.Errorf("dial machine %s: %w", m.id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		m.conn.Close()
	}
	m.conn = conn
	return conn, nil
}

// Close obeys vm.VM. It waits until the process is gone and the folder removed.
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		proc := m.proc
		if m.conn != nil {
			m.conn.Close()
		}
		if proc == nil {
			m.end(nil)
		}
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		m.closeErr = m.rec.Free(ctx)
		if proc != nil {
			proc.os.Kill() // the journal did, unless it failed
			<-proc.exited
			proc.jail.close()
			m.mu.Lock()
			m.end(nil)
			m.mu.Unlock()
		}
		m.closeErr = errors.Join(m.closeErr, m.slot.Close())
		if m.closeErr != nil {
			m.closeErr = &vm.InfraError{Op: "firecracker: close machine " + m.id, Err: m.closeErr}
		}
	})
	return m.closeErr
}

// Info describes the machine.
func (m *machine) Info() vm.Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := vm.Info{ID: m.id, Isolation: m.isolation, Boot: m.boot, Console: m.console.String()}
	if m.proc != nil {
		i.PID = m.proc.os.Pid
	}
	return i
}

// Metrics has the process write its metrics, and returns the last of them.
//
// https://github.com/firecracker-microvm/firecracker/blob/v1.16.1/docs/metrics.md
func (m *machine) Metrics(ctx context.Context) (json.RawMessage, error) {
	m.mu.Lock()
	proc := m.proc
	m.mu.Unlock()
	if err := proc.api.FlushMetrics(ctx); err != nil {
		return nil, err
	}
	f, err := os.Open(proc.jail.path(metricsFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var last json.RawMessage
	lines := bufio.NewScanner(io.LimitReader(f, 64<<20))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if json.Valid(lines.Bytes()) {
			last = bytes.Clone(lines.Bytes())
		}
	}
	if last == nil {
		return nil, errors.Join(errors.New("firecracker wrote no metrics"), lines.Err())
	}
	return last, nil
}
