package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// emulator is one QEMU process. A machine that is rolled back has one after another. Its fields above mu are set
// before it is shared.
type emulator struct {
	m        *machine
	process  *os.Process  // which need not be a child of ours
	wait     func() error // for its end
	qmp      *qmp
	stderr   vm.Console // what QEMU said
	ready    chan struct{}
	migrated chan error    // how a migration ended, to a file or from one
	done     chan struct{} // closed when the process has been waited for and err is settled

	mu     sync.Mutex
	cause  error // the first fault that an event told of
	off    bool  // the guest powered off
	opened bool  // ready is closed
	ending bool  // we end it
	err    error // how it ended, once done is closed; nil: as it should
}

// launch starts QEMU and opens its control connection. inherit are its descriptors from ramFD on. The emulator is
// returned also with an error, unless there was no process; the caller ends it.
func (m *machine) launch(ctx context.Context, a args, inherit []*os.File) (*emulator, error) {
	began := time.Now()
	a.ID = m.rec.ID()
	e := &emulator{m: m, ready: make(chan struct{}), migrated: make(chan error, 1), done: make(chan struct{})}
	if m.slot != nil {
		inherit = append(inherit[:len(inherit):len(inherit)], m.slot.Tap())
	}
	if !a.KVM {
		// The emulator asks for huge pages for the few it writes to: 3 MB of each idle clone. The wish to have none is
		// the process's, and goes to those that it starts; a kernel that does not know it only wastes them.
		unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	}
	if err := e.spawn(m.binary, a.argv(), inherit); err != nil {
		return nil, err
	}
	limited := m.cgroup.Add(e.process.Pid) // before the guest runs
	conn, err := m.dialSocket(ctx, qmpSocket)
	if err == nil {
		e.qmp = newQMP(conn, e.onEvent)
	}
	if err == nil && a.Incoming { // a host was there before, and the guest would have a lot to do if it learned that one went and came
		err = m.beginStream(ctx)
	}
	go e.reap()
	if limited != nil {
		return e, &vm.InfraError{Op: "qemu: limits", Err: limited}
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		<-e.done // nobody listens where QEMU did: its end says more
		return e, e.err
	}
	if err != nil {
		return e, &vm.InfraError{Op: "qemu: control socket", Err: err}
	}
	if err := m.rec.AddProcess(e.process.Pid); err != nil {
		if _, gone := vm.FindProcess(e.process.Pid); gone != nil {
			<-e.done // its end says more
			return e, e.err
		}
		return e, &vm.InfraError{Op: "qemu: journal", Err: err}
	}
	if err := e.qmp.execute(ctx, "qmp_capabilities", nil, nil); err != nil && ctx.Err() == nil {
		<-e.done // the process's end says more than the connection's
		return e, e.err
	}
	m.phase("start the emulator", began)
	return e, nil
}

// spawn starts QEMU in the machine's folder with its listening sockets, in a session of its own: it outlives the
// server's process group.
func (e *emulator) spawn(binary string, argv []string, inherit []*os.File) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, name := range []string{qmpSocket, agentSocket} { // in the order of qmpFD and agentFD
		f, err := e.m.listen(name)
		if err != nil {
			return &vm.InfraError{Op: "qemu: listen", Err: err}
		}
		files = append(files, f)
	}
	cmd := exec.Command(binary, argv...)
	cmd.Dir = e.m.rec.Dir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TMPDIR=" + e.m.rec.Dir(), e.m.rec.Env()}
	cmd.ExtraFiles = append(files[:len(files):len(files)], inherit...)
	cmd.Stdout, cmd.Stderr = &e.m.console, &e.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := cmd.Start
	if e.m.slot != nil { // what breaks out of the emulator reaches what the machine does, or less
		start = func() error { return e.m.slot.Start(cmd) }
	}
	if err := start(); err != nil {
		return &vm.InfraError{Op: "qemu: start", Err: err}
	}
	e.process, e.wait = cmd.Process, cmd.Wait
	return nil
}

// reap waits for the process's end and settles how it ended.
func (e *emulator) reap() {
	exit := e.wait()
	if e.qmp != nil {
		<-e.qmp.done // its last events may tell why
	}
	e.mu.Lock()
	switch {
	case e.cause == errReset:
		console := e.m.console.String() // all of it was read
		e.err = &vm.BootError{ID: e.m.rec.ID(), Console: console, Err: whyReset(console)}
	case e.cause != nil:
		e.err = e.cause
	case e.off, e.ending:
		e.err = nil
	default:
		if exit == nil {
			exit = errors.New("ended")
		}
		if e.m.cgroup.OutOfMemory() {
			exit = fmt.Errorf("out of memory: it took more than its limit on the host: %w", exit)
		}
		if said := strings.TrimSpace(e.stderr.String()); said != "" {
			exit = fmt.Errorf("%w: %s", exit, said)
		}
		e.err = &vm.InfraError{Op: "qemu: machine " + e.m.rec.ID(), Err: exit}
	}
	e.mu.Unlock()
	close(e.done)
}

// whyReset says of a machine that the guest reset what its kernel said last.
func whyReset(console string) error {
	const mark = "Kernel panic - not syncing: "
	if _, said, ok := strings.Cut(console, mark); ok {
		return fmt.Errorf("the guest's kernel panicked: %.200s", firstLine(said))
	}
	return errReset
}

// onEvent is called by the control connection's reader.
func (e *emulator) onEvent(name string, data json.RawMessage) {
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
	e.mu.Lock()
	defer e.mu.Unlock()
	switch name {
	case "VSERPORT_CHANGE":
		if d.Open && d.ID == portID && !e.opened {
			e.opened = true
			close(e.ready)
		}
	case "MIGRATION":
		e.onMigration(d.Status)
	case "SHUTDOWN":
		if d.Reason == "guest-shutdown" {
			e.off = true
		} else if strings.HasPrefix(d.Reason, "guest") && e.cause == nil {
			e.cause = errReset
		}
	case "BLOCK_IO_ERROR":
		if e.cause == nil {
			e.cause = &vm.InfraError{Op: "qemu: " + d.Operation + " disk " + d.Node, Err: errors.New(d.Reason)}
		}
		e.process.Kill() // it is paused, and nothing would ever resume it
	}
}

// onMigration tells how a migration ended.
func (e *emulator) onMigration(status string) {
	var err error
	switch status {
	case "completed":
	case "failed", "cancelled":
		err = fmt.Errorf("the migration of its state %s", status)
	default:
		return
	}
	select {
	case e.migrated <- err:
	default:
	}
}

// awaitAgent waits until the agent has opened its port.
func (e *emulator) awaitAgent(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-e.ready:
		return nil
	case <-e.done:
		if e.err == nil {
			return errNoBoot
		}
		return e.err
	case <-timer.C:
		return fmt.Errorf("its agent did not open the port within %v", timeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// end kills the process, and returns when it is gone.
func (e *emulator) end() {
	e.mu.Lock()
	e.ending = true
	e.mu.Unlock()
	e.process.Kill()
	<-e.done
	if e.qmp != nil {
		e.qmp.conn.Close()
	}
}
