package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

// ServerConfig configures an agent. Its zero value is an agent on a socket that has nothing to itself.
type ServerConfig struct {
	Version string        // of the build, for Hello
	Log     *slog.Logger  // nil: nothing is logged
	Orphans time.Duration // how long processes outlive a lost stream; 0: 10 minutes
	// Port says that the stream is a virtio-serial port, which outlives its hosts: the end of it means that no
	// host is connected.
	Port bool
	// Scratch is Hello's.
	Scratch string
	// Machine says that the agent has a machine to itself: Prepare may set its name, clock and entropy.
	Machine bool
	// Cgroup, if not "", is where the control group is mounted that holds all that runs here, and nothing else.
	Cgroup string
	engine *activator // starts the machine's container engine for who connects to its socket; nil: there is none
	// Reap says that the agent is PID 1 or a subreaper, and this process has no other children: the server
	// waits for every child, also those that it did not start.
	Reap bool
}

const (
	maxProcesses = 1024 // that run, or whose exit has not been delivered, and one
	maxID        = 128  // bytes
)

// Server is the agent's end. Processes belong to it, not to the stream: they outlive a session, and go on when
// the next begins. It is safe for concurrent use.
type Server struct {
	cfg     ServerConfig
	log     *slog.Logger
	waits   *waiter
	buffers buffers

	shortages shortages

	preparing sync.Mutex
	clone     clone // with preparing held

	mu        sync.Mutex
	processes map[string]*process
	pumps     map[*pump]bool // all that run, also for what finished processes left behind
	ports     map[string]net.Listener
	closed    bool
	self      []byte      // Hello, as it was when the last session ended
	session   func()      // ends the session that is on
	last      *process    // the last one whose exit was delivered
	lost      *time.Timer // runs while there is none
	abandoned func()      // is called when it ran out; may be nil
	work      sync.WaitGroup
}

// NewServer returns a server for Serve and Listen. Close frees it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Orphans <= 0 {
		cfg.Orphans = 10 * time.Minute
	}
	s := &Server{cfg: cfg, log: cfg.Log, waits: newWaiter(cfg.Reap), clone: clone{files: machineFiles()},
		processes: map[string]*process{}, pumps: map[*pump]bool{}, ports: map[string]net.Listener{}}
	if cfg.Machine {
		if g := openJobGroup(cgroupMount, cfg.Log); g != nil {
			s.shortages.group = g
			go g.guard() // as long as the machine runs
		}
	}
	if cfg.engine != nil {
		go func() { // likewise
			if err := cfg.engine.run(s); err != nil {
				s.log.Warn("nobody starts the container engine any more", "error", err)
			}
		}()
	}
	s.know()
	return s
}

// Serve serves hosts on conn, one after another, until the stream ends or ctx does; a port never ends, but for an agent that
// has a machine to itself when no host came back for the time of Orphans: then the machine may power off. It kills every
// process that it started. The server owns conn.
func Serve(ctx context.Context, conn net.Conn, cfg ServerConfig) error {
	s := NewServer(cfg)
	defer s.Close()
	if !cfg.Machine {
		return s.Serve(ctx, conn)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	s.abandoned = func() { cancel(errAbandoned) }
	s.mu.Unlock()
	if err := s.Serve(ctx, conn); !errors.Is(err, errAbandoned) {
		return err
	}
	return nil
}

// Serve serves hosts on conn until the stream ends, or ctx does. The end of the stream is no error.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := bufio.NewReaderSize(conn, maxData)
	for {
		conn.SetDeadline(time.Time{})
		err := answer(ctx, conn, r, s.cfg.Port, s.hello)
		if err == nil {
			err = s.serveSession(ctx, conn, r)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
			return nil
		case err == nil || s.cfg.Port:
			s.log.Debug("session over", "err", err)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			return nil
		default:
			return fmt.Errorf("agent: %w", err)
		}
	}
}

// Listen serves hosts that connect to l, one at a time: a second ends the session of the first. It returns when
// ctx ends or l fails, and with nil when for the time of Orphans no host was there. The server owns l.
func (s *Server) Listen(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	s.abandoned = func() { cancel(errAbandoned) }
	s.mu.Unlock()
	s.ended()
	err := s.listen(ctx, l)
	if errors.Is(err, errAbandoned) {
		return nil
	}
	return err
}

var errAbandoned = errors.New("no host came back")

func (s *Server) listen(ctx context.Context, l net.Listener) error {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	end := func() {} // ends the connection that is served, and waits for it
	defer func() { end() }()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("agent: %w", err)
		}
		end()
		sctx, cancel := context.WithCancel(ctx)
		over := make(chan struct{})
		end = func() { cancel(); <-over }
		go func() {
			defer close(over)
			if err := s.Serve(sctx, conn); err != nil {
				s.log.Debug("connection over", "err", err)
			}
		}()
	}
}

// Close ends the session, kills every process with its session and waits until they are gone. What processes put
// into sessions of their own stays. It is idempotent, and follows the return of Serve and Listen.
func (s *Server) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	if s.lost != nil {
		s.lost.Stop()
	}
	end := s.session
	s.mu.Unlock()
	if again {
		return nil
	}
	if end != nil {
		end()
	}
	s.killAll()
	s.mu.Lock()
	for u := range s.pumps {
		u.file.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	s.waits.close()
	s.preparing.Lock()
	defer s.preparing.Unlock()
	s.clone.close()
	return nil
}

// hello is what the agent says of itself. A host waits for it, and for all that an emulator would have to translate for it:
// it was made before.
func (s *Server) hello() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.self
}

// know finds out what hello says.
func (s *Server) know() {
	h := Hello{Protocol: Protocol, Version: clip(s.cfg.Version, 256), PID: os.Getpid(), Scratch: s.cfg.Scratch}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h.BootID = strings.TrimSpace(string(b))
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
		h.Hostname = unix.ByteSliceToString(u.Nodename[:])
	}
	b, err := json.Marshal(h)
	if err != nil {
		s.log.Error("agent does not know itself", "error", err)
	}
	s.mu.Lock()
	s.self = b
	s.mu.Unlock()
}

// serveSession runs the multiplexer until it dies. nil means that the stream may hold another session.
func (s *Server) serveSession(ctx context.Context, conn net.Conn, r *bufio.Reader) error {
	watch := &watchedConn{muxConn: muxConn{r: r, conn: conn, close: func() {}}}
	mux, err := yamux.Server(watch, muxConfig(false))
	if err != nil {
		return err
	}
	s.begun(func() { mux.Close() })
	stop := context.AfterFunc(ctx, func() { mux.Close() })
	var calls sync.WaitGroup
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			break
		}
		calls.Go(func() { s.serve(stream) })
	}
	stop()
	mux.Close()
	calls.Wait()
	s.know()
	s.ended()
	return watch.err()
}

// watchedConn remembers why reading ended, which the multiplexer does not tell.
type watchedConn struct {
	muxConn
	mu   sync.Mutex
	fail error
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.muxConn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.mu.Lock()
		c.fail = err
		c.mu.Unlock()
	}
	return n, err
}

func (c *watchedConn) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fail
}

// begun and ended keep the time for which processes are without a host.
func (s *Server) begun(end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = end
	if s.lost != nil {
		s.lost.Stop()
		s.lost = nil
	}
}

func (s *Server) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = nil
	if s.closed {
		return
	}
	abandoned := s.abandoned
	s.lost = time.AfterFunc(s.cfg.Orphans, func() {
		s.log.Warn("no host came back: killing all processes", "after", s.cfg.Orphans)
		s.killAll()
		if abandoned != nil {
			abandoned()
		}
	})
}

// callee is the agent's side of one operation.
type callee struct {
	s   *Server
	in  reader
	out sender
}

// serve answers one stream.
func (s *Server) serve(stream *yamux.Stream) {
	defer stream.Close()
	k := &callee{s: s, in: reader{r: stream, max: maxRequest}, out: sender{stream: stream}}
	kind, b, err := k.in.next()
	if err != nil || kind != kRequest {
		return
	}
	var req request
	if err := decode(kind, b, &req); err != nil {
		k.fail(err)
		return
	}
	k.in = reader{r: stream, max: maxFrame}
	over := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { k.beat(over) })
	defer beats.Wait()
	defer close(over)
	if err := k.do(&req); err != nil {
		k.fail(err)
	}
}

func (k *callee) do(req *request) error {
	switch req.Op {
	case opExec, opStart:
		return k.start(req)
	case opAttach:
		return k.attach(req)
	case opStdin:
		k.out.send(frame(kBeat, nil)) // takes the grant of the multiplexer along
		return k.stdin(req)
	case opSignal:
		p, err := k.s.find(req.ID)
		if err == nil {
			err = p.signal(syscall.Signal(req.Signal))
		}
		return k.done(reply{}, err)
	case opResize:
		p, err := k.s.find(req.ID)
		if err == nil && req.TTY == nil {
			err = fmt.Errorf("resize without a size: %w", ErrRefused)
		}
		if err == nil {
			err = p.resize(*req.TTY)
		}
		return k.done(reply{}, err)
	case opPut:
		k.out.send(frame(kBeat, nil))
		r := &dataReader{in: &k.in}
		if err := unpack(string(req.Dir), r); err != nil {
			k.fail(err)
			io.Copy(io.Discard, r) // the host sends all before it listens
			return nil
		}
		return k.done(reply{}, nil)
	case opGet:
		w := &dataWriter{out: &k.out}
		skipped, err := pack(string(req.Dir), w)
		if err == nil {
			err = w.flush()
		}
		return k.done(reply{Skipped: skipped}, err)
	case opPrepare:
		if !k.s.cfg.Machine || req.Identity == nil {
			return fmt.Errorf("prepare: %w: the agent has no machine to itself", ErrRefused)
		}
		if req.Identity.empty() {
			return k.done(reply{Clock: time.Now().UnixNano()}, nil)
		}
		return k.done(reply{}, k.s.prepare(req.Identity))
	case opListen:
		return k.openPort(req)
	case opAccept:
		return k.acceptPort(req)
	default:
		return fmt.Errorf("unknown operation %q", clip(string(req.Op), 32))
	}
}

// prepare is the agent's part of Prepare.
func (s *Server) prepare(id *Identity) error {
	s.preparing.Lock()
	defer s.preparing.Unlock()
	return s.clone.prepare(id)
}

// done ends an operation that has no exit.
func (k *callee) done(r reply, err error) error {
	if err != nil {
		return err
	}
	b, err := frameJSON(kEnd, r)
	if err != nil {
		return err
	}
	return k.out.send(b)
}

func (k *callee) fail(err error) {
	if b, err := frameJSON(kError, failureOf(err)); err == nil {
		k.out.send(b)
	}
}

// beat shows that the operation is at work.
func (k *callee) beat(over <-chan struct{}) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			k.out.send(frame(kBeat, nil))
		}
	}
}

// find returns the process of this id.
func (s *Server) find(id string) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.processes[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("process %q: %w", clip(id, maxID), fs.ErrNotExist)
}

// dataReader reads the data frames of a stream up to kEnd.
type dataReader struct {
	in   *reader
	rest []byte
	end  bool
}

func (r *dataReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.end {
			return 0, io.EOF
		}
		kind, payload, err := r.in.next()
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case kind == kData:
			r.rest = payload
		case kind == kEnd:
			r.end = true
		default:
			return 0, fmt.Errorf("%w: frame %d among data", ErrProtocol, kind)
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// dataWriter gathers bytes into data frames.
type dataWriter struct {
	out *sender
	buf []byte
}

func (w *dataWriter) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		if w.buf == nil {
			w.buf = make([]byte, headerSize, headerSize+maxData)
		}
		n := min(len(b), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (w *dataWriter) flush() error {
	if len(w.buf) <= headerSize {
		return nil
	}
	header(w.buf, kData, len(w.buf)-headerSize)
	err := w.out.send(w.buf)
	w.buf = w.buf[:headerSize]
	return err
}

// buffer holds one frame of output.
type buffer [headerSize + seqSize + maxData]byte

// buffers keeps buffers for the next process: most live for a few milliseconds.
type buffers struct{ pool sync.Pool }

func (p *buffers) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func (p *buffers) put(b *buffer) { p.pool.Put(b) }
