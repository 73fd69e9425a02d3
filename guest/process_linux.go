package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pipeSize = 1 << 20 // bytes that we ask the kernel for per pipe
	// drainWithin is how long after its end a process's output may be held open by what it left behind. What it
	// wrote itself is always delivered.
	drainWithin = 500 * time.Millisecond
)

// process is one that was asked for, until its exit has been delivered. Its session has its pid as a number.
type process struct {
	s     *Server
	id    string
	name  string
	ring  *ring
	pumps []*pump
	stdin *os.File // nil: /dev/null, or closed
	tty   bool     // the one pump's file is the host's end of a terminal, and stdin a duplicate of it

	begin time.Time
	pid   int
	over  chan struct{} // closed when exit is set, after the last byte of output is in the ring
	exit  wireExit
	ended chan end

	mu       sync.Mutex
	reader   *cursor // of the host that is attached
	canceled bool

	sent atomic.Bool // the exit is on its way to the host, which may use the id again
}

// start runs what req asks for. With opExec the host is attached at once.
func (k *callee) start(req *request) error {
	if len(req.ID) == 0 || len(req.ID) > maxID {
		return fmt.Errorf("process id of %d bytes, want 1 to %d: %w", len(req.ID), maxID, ErrRefused)
	}
	p := &process{
		s: k.s, id: req.ID, ring: newRing(),
		over: make(chan struct{}), ended: make(chan end, 1),
	}
	if err := p.launch(req); err != nil {
		e, ok := errors.AsType[*startError](err)
		if !ok {
			return err
		}
		b, err := frameJSON(kExit, wireExit{Code: e.status, Message: e.message})
		if err != nil {
			return err
		}
		return k.out.send(b)
	}
	if req.Op == opStart {
		return k.out.send(frame(kStarted, nil))
	}
	if req.Stdin { // the host waits to send it
		if err := k.out.send(frame(kStarted, nil)); err != nil {
			return err
		}
	}
	return k.follow(p, 0)
}

// launch starts the process and what looks after it.
func (p *process) launch(req *request) (err error) {
	cmd, err := commandOf(req)
	if err != nil {
		return err
	}
	p.name = cmd.args[0]
	var theirs []int // the process's ends, which are descriptors and no more: nobody here reads, polls or finalizes them
	defer func() {
		for _, fd := range theirs {
			unix.Close(fd)
		}
		if err != nil {
			p.closePipes()
		}
	}()
	open := func(fd int, err error) (uintptr, error) {
		if err == nil {
			theirs = append(theirs, fd)
		}
		return uintptr(fd), err
	}
	if req.TTY != nil {
		tty, err := open(p.terminal(cmd, req))
		if err != nil {
			return fmt.Errorf("start %s: %w", p.name, err)
		}
		cmd.attr.Files = []uintptr{tty, tty, tty}
		return p.fork(cmd)
	}
	var in, out, errout uintptr
	if req.Stdin {
		in, err = open(p.input())
	} else {
		in, err = open(unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0))
	}
	if err == nil {
		out, err = open(p.output(kStdout))
	}
	if errout = out; err == nil && req.Split {
		errout, err = open(p.output(kStderr))
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	cmd.attr.Files = []uintptr{in, out, errout}
	return p.fork(cmd)
}

// input makes a pipe for standard input, and returns the end for the process.
func (p *process) input() (theirs int, err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	p.stdin = pipeEnd(ends[1])
	return ends[0], nil
}

// output makes a pipe for output, and returns the end for the process.
func (p *process) output(k kind) (theirs int, err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, pipeSize) // an unprivileged user may have used up what is allowed
	r := pipeEnd(ends[0])
	pump, err := newPump(r, k, p.ring, &p.s.buffers)
	if err != nil {
		r.Close()
		unix.Close(ends[1])
		return -1, err
	}
	p.pumps = append(p.pumps, pump)
	return ends[1], nil
}

// pipeEnd is our end of a pipe, which waits in the poller; the other end, with the process, waits by itself.
func pipeEnd(fd int) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "pipe")
}

func (p *process) closePipes() {
	for _, u := range p.pumps {
		u.file.Close()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// fork starts the command under the server's lock, so that Close sees every process or none is made.
func (p *process) fork(cmd *command) error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.New("the agent is ending")
	case s.processes[p.id] != nil && !s.processes[p.id].sent.Load():
		return fmt.Errorf("process id %q is in use: %w", p.id, os.ErrExist)
	case len(s.processes) >= maxProcesses:
		return fmt.Errorf("%d processes run: %w", len(s.processes), ErrRefused)
	}
	p.begin = time.Now()
	begun := s.shortages.group.admit(cmd)
	err := s.waits.start(cmd.path, cmd.args, &cmd.attr, func(pid int) { p.pid = pid }, func(e end) { p.ended <- e })
	begun()
	if g := s.shortages.group; g != nil && errors.Is(err, unix.EAGAIN) {
		return &startError{statusNotExecutable, fmt.Sprintf("%s: the machine has room for %d processes, and as many run", p.name, g.most)}
	}
	if err != nil {
		return launchError(p.name, err)
	}
	s.processes[p.id] = p
	for _, u := range p.pumps {
		s.pumps[u] = true
		s.work.Go(func() {
			u.run()
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.pumps, u)
		})
	}
	s.work.Go(p.look)
	return nil
}

// look waits for the process, then for its output.
func (p *process) look() {
	e := p.await()
	status := e.status
	p.exit = wireExit{Started: true, Code: status.ExitStatus(), Duration: int64(time.Since(p.begin)),
		CPU: e.usage.Utime.Nano() + e.usage.Stime.Nano(), Memory: p.exit.Memory}
	if status.Signaled() {
		p.exit.Code = 128 + int(status.Signal())
		p.exit.Signal = unix.SignalName(status.Signal())
		p.exit.Message = p.name + ": " + status.Signal().String()
	}
	if p.exit.Code != 0 && p.s.cfg.Machine {
		p.exit.Shortage = p.s.shortages.look("/proc/vmstat", "/")
	}
	within := time.NewTimer(drainWithin)
	defer within.Stop()
	expired := false
	for _, u := range p.pumps {
		if !expired {
			select {
			case <-u.drained:
				continue
			case <-within.C:
				expired = true
			}
		}
		u.enough()
		<-u.drained
	}
	p.ring.close()
	p.mu.Lock()
	if p.stdin != nil {
		p.stdin.Close()
	}
	p.mu.Unlock()
	close(p.over)
}

// signal sends sig to the process's group while there is one that is ours.
func (p *process) signal(sig syscall.Signal) error {
	if sig <= 0 || sig > 64 {
		return fmt.Errorf("signal %d: %w", int(sig), ErrRefused)
	}
	var err error
	if !p.s.waits.alive(p.pid, func() { err = unix.Kill(-p.pid, sig) }) {
		return fmt.Errorf("process %q has ended: %w", p.id, os.ErrNotExist)
	}
	return err
}

// kill kills the process's group and the rest of its session, until none is left. The number of a session is not
// used again while it has members, and the members are looked up each time.
func (p *process) kill() {
	for range 100 {
		if p.s.waits.childless() {
			return
		}
		p.s.waits.alive(p.pid, func() { unix.Kill(-p.pid, unix.SIGKILL) })
		pids := sessionOf(p.pid)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			if sid, err := unix.Getsid(pid); err == nil && sid == p.pid {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// cancel ends the process within grace: SIGINT, SIGTERM, SIGKILL.
func (p *process) cancel(grace time.Duration) {
	p.mu.Lock()
	again := p.canceled
	p.canceled = true
	p.mu.Unlock()
	if again && grace > 0 {
		return
	}
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{unix.SIGINT, grace - grace/4}, {unix.SIGTERM, grace / 4}} {
		if grace <= 0 {
			break
		}
		p.signal(step.sig)
		select {
		case <-p.over:
			return
		case <-time.After(step.wait):
		}
	}
	p.kill()
}

// stdin is the input of a process that runs, on a stream of its own so that it has its own flow control.
func (k *callee) stdin(req *request) error {
	p, err := k.s.find(req.ID)
	if err != nil {
		return err
	}
	p.mu.Lock()
	f := p.stdin
	p.mu.Unlock()
	if f == nil {
		return fmt.Errorf("process %q has no standard input: %w", p.id, ErrRefused)
	}
	_, err = io.Copy(f, &dataReader{in: &k.in})
	if p.tty && err == nil {
		_, err = f.Write([]byte{endOfInput})
	}
	f.Close()
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		err = nil // it read what it wanted
	}
	return k.done(reply{}, err)
}

// attach gives a process that runs, or whose exit was not delivered, a new host.
func (k *callee) attach(req *request) error {
	p, err := k.s.find(req.ID)
	if err != nil {
		return err
	}
	return k.follow(p, req.From)
}

// follow sends the output from a sequence number on, and the exit, while the host's acks and cancels come in.
func (k *callee) follow(p *process, from uint64) error {
	c, err := p.ring.from(from)
	if err != nil {
		return err
	}
	p.mu.Lock()
	if p.reader != nil {
		p.ring.stop(p.reader)
	}
	p.reader = c
	p.mu.Unlock()

	finished := make(chan bool, 1) // true: the host has the exit
	go func() {
		done := k.listen(p)
		p.ring.stop(c)
		finished <- done
	}()
	small := k.s.buffers.get()
	defer k.s.buffers.put(small)
	buf := small[:]
	for {
		kind, seq, b, ok := p.ring.next(c)
		if !ok {
			break
		}
		if headerSize+seqSize+len(b) > len(buf) {
			buf = make([]byte, headerSize+seqSize+maxOutput)
		}
		header(buf, kind, seqSize+len(b))
		binary.BigEndian.PutUint64(buf[headerSize:], seq)
		n := copy(buf[headerSize+seqSize:], b)
		if err := k.out.send(buf[:headerSize+seqSize+n]); err != nil {
			<-finished
			return err
		}
	}
	if p.ring.stopped(c) {
		k.fail(errors.New("detached: another host attached, or the stream ended"))
		<-finished
		return nil
	}
	<-p.over
	b, err := frameJSON(kExit, p.exit)
	if err == nil {
		p.sent.Store(true)
		err = k.out.send(b)
	}
	if <-finished {
		k.s.forget(p)
	}
	return err
}

// listen takes the host's frames until it is done, which it reports, or gone.
func (k *callee) listen(p *process) (done bool) {
	for {
		kind, b, err := k.in.next()
		if err != nil {
			return false
		}
		n := uint64(0)
		if kind == kAck || kind == kCancel {
			if n, err = decodeUint(kind, b); err != nil {
				return false
			}
		}
		switch kind {
		case kAck:
			p.ring.ack(n)
		case kCancel:
			p.s.work.Go(func() { p.cancel(time.Duration(min(n, uint64(time.Hour)))) })
		case kDone:
			return true
		default:
			return false
		}
	}
}

// forget drops a process whose exit has been delivered, when the next one's has: a host that ends before it has written
// down what it was told is followed by one that asks again.
func (s *Server) forget(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.last; last != nil && s.processes[last.id] == last {
		delete(s.processes, last.id)
	}
	s.last = nil
	if s.processes[p.id] == p {
		s.last = p
	}
}

// killAll kills every process and forgets those that nobody will ask for.
func (s *Server) killAll() {
	s.mu.Lock()
	all := make([]*process, 0, len(s.processes))
	for _, p := range s.processes {
		all = append(all, p)
	}
	clear(s.processes)
	s.mu.Unlock()
	for _, p := range all {
		p.ring.discard()
		p.kill()
	}
}
