package guest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// ackEvery is how many bytes of output the client takes between two acks.
const ackEvery = 128 << 10

// cancelSlack is what the agent may take over the grace until it reports the exit of a cancelled process.
const cancelSlack = 15 * time.Second

// Client is the host's end of the stream to one agent. Its methods are safe for concurrent use. An error that
// matches ErrLost means that the stream is gone, and all later calls will fail alike; one that matches
// ErrProtocol means that the agent is not to be trusted, and the machine not to be used again.
type Client struct {
	conn  net.Conn
	mux   *yamux.Session
	hello Hello
	work  sync.WaitGroup // our goroutines, but for a Read of standard input that hangs
}

// Connect greets the agent on conn, skipping what an earlier session left there. It gives up when ctx ends, and
// after a minute. The Client owns conn, and closes it also when Connect fails.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	h, r, err := greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	mux, err := yamux.Client(&muxConn{r: r, conn: conn, close: func() { conn.Close() }}, muxConfig(true))
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{conn: conn, mux: mux, hello: h}
	c.work.Go(func() {
		// Operations are the host's to begin: an agent that opens a stream is after the host's memory.
		if _, err := mux.AcceptStream(); err == nil {
			mux.Close()
		}
	})
	return c, nil
}

// Hello is what the agent said of itself. It is the agent's word.
func (c *Client) Hello() Hello { return c.hello }

// Close ends the stream, and with it every call in progress, which it waits for: it must not be called by a
// writer of Exec's. Processes go on for the agent's grace period, so that another host may attach to them. It is
// idempotent.
func (c *Client) Close() error {
	err := c.mux.Close()
	c.work.Wait()
	return err
}

// Done is closed when the stream to the agent is gone.
func (c *Client) Done() <-chan struct{} { return c.mux.CloseChan() }

// call is one operation: its stream, and what watches over it.
type call struct {
	c      *Client
	op     op
	ctx    context.Context // lives as long as the call, as do its methods
	stream *yamux.Stream
	in     reader
	out    sender
	soft   bool // the end of ctx does not break the stream
	stop   func() bool
}

// begin opens a stream with a request. When ctx ends the stream breaks, unless soft, where the caller sees to it.
func (c *Client) begin(ctx context.Context, req *request, soft bool) (*call, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := frameJSON(kRequest, req)
	if err != nil {
		return nil, err
	}
	if len(b) > maxRequest {
		return nil, fmt.Errorf("%s: arguments and environment of %d bytes, the limit is %d: %w", req.Op, len(b), maxRequest, syscall.E2BIG)
	}
	s, err := c.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", req.Op, ErrLost, err)
	}
	k := &call{c: c, op: req.Op, ctx: ctx, stream: s, soft: soft, in: reader{r: s, max: maxFrame}, out: sender{stream: s, within: silence}}
	k.stop = func() bool { return true }
	if !soft {
		k.out.done = ctx.Done()
		k.stop = context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
	}
	if err := k.out.send(b); err != nil {
		err = k.wrap(err)
		k.end()
		return nil, err
	}
	return k, nil
}

// end gives up the stream.
func (k *call) end() {
	k.stop()
	k.stream.Close()
}

// next returns the agent's next frame that is not a beat, or fails after a silence.
func (k *call) next() (kind, []byte, error) {
	for {
		k.stream.SetReadDeadline(time.Now().Add(silence))
		if !k.soft && k.ctx.Err() != nil { // the deadline that its end set may be the one just overwritten
			return 0, nil, k.wrap(k.ctx.Err())
		}
		kind, b, err := k.in.next()
		if err != nil {
			return 0, nil, k.wrap(err)
		}
		switch kind {
		case kBeat:
		case kError:
			var f failure
			if err := decode(kind, b, &f); err != nil {
				return 0, nil, k.wrap(err)
			}
			return 0, nil, fmt.Errorf("%s: agent: %w", k.op, f.err())
		default:
			return kind, b, nil
		}
	}
}

// wrap says what an error of the stream means.
func (k *call) wrap(err error) error {
	switch {
	case errors.Is(err, ErrProtocol):
	case k.ctx.Err() != nil:
		return context.Cause(k.ctx)
	case errors.Is(err, yamux.ErrTimeout):
		err = fmt.Errorf("%w: the agent was silent for %v", ErrLost, silence)
	case errors.Is(err, io.EOF): // which must not pass for the end of a file
		err = fmt.Errorf("%w: %w", ErrLost, io.ErrUnexpectedEOF)
	default:
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return fmt.Errorf("%s: %w", k.op, err)
}

// unexpected is for a frame that has no place here.
func (k *call) unexpected(got kind) error {
	return fmt.Errorf("%s: %w: unexpected frame %d", k.op, ErrProtocol, got)
}

// Exec runs cmd and returns when it has ended and its output has been written to out, which may be nil. What it
// leaves in the background keeps running, and is waited for for at most half a second if it holds the output open.
//
// Exit is the command's verdict, and the error the machinery's: a program that could not be started is an Exit.
// When ctx ends the process group is ended as cmd.Grace says, and Exec returns the Exit with ctx's cause.
func (c *Client) Exec(ctx context.Context, cmd Cmd, out io.Writer) (Exit, error) {
	if cmd.TTY != nil && cmd.Stderr != nil {
		return Exit{}, errors.New("exec: a terminal has no standard error apart")
	}
	req := requestOf(opExec, &cmd)
	k, err := c.begin(ctx, req, true)
	if err != nil {
		return Exit{}, err
	}
	defer k.end()
	return k.follow(&follower{id: req.ID, stdin: cmd.Stdin, grace: cmd.Grace, out: out, stderr: cmd.Stderr})
}

// Start starts cmd, which goes on when ctx ends, and returns when it runs; its ID is for Attach and Signal. It
// blocks when nobody attaches and it has written a MiB. A program that could not be started is an error.
func (c *Client) Start(ctx context.Context, cmd Cmd) (id string, err error) {
	req := requestOf(opStart, &cmd)
	if cmd.Stdin != nil {
		return "", errors.New("start: standard input is for Exec")
	}
	k, err := c.begin(ctx, req, false)
	if err != nil {
		return "", err
	}
	defer k.end()
	kind, b, err := k.next()
	switch {
	case err != nil:
		return "", err
	case kind == kStarted:
		return req.ID, nil
	case kind == kExit:
		exit, err := k.exit(b)
		if err == nil {
			err = fmt.Errorf("start: %s", exit.Message)
		}
		return "", err
	default:
		return "", k.unexpected(kind)
	}
}

// Attachment is how to go on with a process that an earlier session started.
type Attachment struct {
	ID     string        // of the process
	From   uint64        // how many bytes of its output, of both streams together, the host has
	Out    io.Writer     // as Exec's out
	Stderr io.Writer     // gets standard error if the Cmd had one; nil: it goes to Out
	Grace  time.Duration // as Cmd's
}

// Attach goes on with a process where an earlier session left off, and ends as Exec does. Whoever was attached
// before is detached, with an error. Output that is no longer kept is ErrGone, an unknown ID fs.ErrNotExist.
func (c *Client) Attach(ctx context.Context, a Attachment) (Exit, error) {
	k, err := c.begin(context.WithoutCancel(ctx), &request{Op: opAttach, ID: a.ID, From: a.From}, true)
	if err != nil {
		return Exit{}, err
	}
	k.ctx = ctx // which may have ended: then so does the process
	defer k.end()
	return k.follow(&follower{id: a.ID, seq: a.From, grace: a.Grace, out: a.Out, stderr: a.Stderr})
}

// Signal sends sig to the process group of a running process.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := c.simple(ctx, &request{Op: opSignal, ID: id, Signal: int(sig)})
	return err
}

// Resize sets the size of the terminal of a running process.
func (c *Client) Resize(ctx context.Context, id string, size WindowSize) error {
	_, err := c.simple(ctx, &request{Op: opResize, ID: id, TTY: &size})
	return err
}

// Prepare gives the machine its identity, before any user's code runs: name and clock, and with id.Entropy a
// kernel's generator, a machine-id and a boot id that no clone shares. It may be called again; an agent that does
// not have the machine to itself refuses, with ErrRefused.
func (c *Client) Prepare(ctx context.Context, id Identity) error {
	return inTime(id, func(id Identity) (time.Time, error) {
		r, err := c.simple(ctx, &request{Op: opPrepare, Identity: &id})
		return time.Unix(0, r.Clock), err
	})
}

// simple is an operation that is answered with a reply.
func (c *Client) simple(ctx context.Context, req *request) (reply, error) {
	k, err := c.begin(ctx, req, false)
	if err != nil {
		return reply{}, err
	}
	defer k.end()
	return k.reply()
}

func (k *call) reply() (reply, error) {
	kind, b, err := k.next()
	if err != nil {
		return reply{}, err
	}
	if kind != kEnd {
		return reply{}, k.unexpected(kind)
	}
	var r reply
	return r, decode(kind, b, &r)
}

func requestOf(o op, cmd *Cmd) *request {
	req := &request{Op: o, ID: cmd.ID, Dir: []byte(cmd.Dir), User: cmd.User, Stdin: cmd.Stdin != nil, Split: cmd.Stderr != nil, TTY: cmd.TTY}
	if req.ID == "" {
		req.ID = rand.Text()
	}
	for _, a := range cmd.Args {
		req.Args = append(req.Args, []byte(a))
	}
	for _, e := range cmd.Env {
		req.Env = append(req.Env, []byte(e))
	}
	return req
}

// follower is the host's side of a process that runs.
type follower struct {
	id          string
	seq         uint64 // of the next byte
	acked       uint64
	stdin       io.Reader
	grace       time.Duration
	out, stderr io.Writer
}

// follow takes a process's output until its exit.
func (k *call) follow(f *follower) (Exit, error) {
	if f.out == nil {
		f.out = io.Discard
	}
	if f.stderr == nil {
		f.stderr = f.out
	}
	var late atomic.Int64 // when a cancelled process must have ended, in Unix nanoseconds
	k.c.work.Add(1)
	over := make(chan struct{})
	go func() {
		defer k.c.work.Done()
		select {
		case <-over:
		case <-k.ctx.Done():
			late.Store(time.Now().Add(f.grace + cancelSlack).UnixNano())
			k.out.send(frameUint(kCancel, uint64(f.grace)))
		}
	}()
	defer close(over)
	exit, err := k.followUntil(f, &late)
	if err == nil && k.ctx.Err() != nil && late.Load() != 0 {
		err = context.Cause(k.ctx)
	}
	return exit, err
}

func (k *call) followUntil(f *follower, late *atomic.Int64) (Exit, error) {
	for {
		if t := late.Load(); t != 0 && time.Now().UnixNano() > t {
			return Exit{}, fmt.Errorf("%s: %w: the process did not end within %v of its cancellation: %w", k.op, ErrProtocol, f.grace+cancelSlack, context.Cause(k.ctx))
		}
		kind, b, err := k.next()
		if err != nil {
			return Exit{}, err
		}
		switch kind {
		case kStarted:
			k.feed(f)
		case kStdout, kStderr:
			if err := k.deliver(f, kind, b); err != nil {
				return Exit{}, err
			}
		case kExit:
			exit, err := k.exit(b)
			if err == nil {
				k.out.send(frame(kDone, nil))
			}
			return exit, err
		default:
			return Exit{}, k.unexpected(kind)
		}
	}
}

// deliver writes a frame of output and acks now and then. A writer that fails ends the process: nobody would
// know what it goes on to say.
func (k *call) deliver(f *follower, kind kind, b []byte) error {
	if len(b) < seqSize {
		return fmt.Errorf("%s: %w: a frame of output of %d bytes", k.op, ErrProtocol, len(b))
	}
	if seq := binary.BigEndian.Uint64(b); seq != f.seq {
		return fmt.Errorf("%s: %w: output at byte %d, want %d", k.op, ErrProtocol, seq, f.seq)
	}
	w := f.out
	if kind == kStderr {
		w = f.stderr
	}
	b = b[seqSize:]
	if _, err := w.Write(b); err != nil {
		k.out.send(frameUint(kCancel, 0))
		return fmt.Errorf("%s: output: %w", k.op, err)
	}
	f.seq += uint64(len(b))
	if f.seq-f.acked < ackEvery {
		return nil
	}
	f.acked = f.seq
	if err := k.out.send(frameUint(kAck, f.seq)); err != nil {
		return k.wrap(err)
	}
	return nil
}

func (k *call) exit(b []byte) (Exit, error) {
	var w wireExit
	if err := decode(kExit, b, &w); err != nil {
		return Exit{}, fmt.Errorf("%s: %w", k.op, err)
	}
	if w.Started && w.Signal == "" && (w.Code < 0 || w.Code > 255) || len(w.Signal) > 32 {
		return Exit{}, fmt.Errorf("%s: %w: exit status %d", k.op, ErrProtocol, w.Code)
	}
	return Exit{Code: w.Code, Signal: w.Signal, Started: w.Started, Message: clip(w.Message, 4096), Duration: time.Duration(w.Duration),
		Shortage: w.Shortage.Known(), CPU: time.Duration(w.CPU), Memory: w.Memory}.Bounded(), nil
}

// feed copies standard input on a stream of its own, once. Nobody waits for it: it may hang in a Read, and what
// the process did not take is of no interest after its exit.
func (k *call) feed(f *follower) {
	if f.stdin == nil {
		return
	}
	stdin := f.stdin
	f.stdin = nil
	go func() {
		in, err := k.c.begin(context.WithoutCancel(k.ctx), &request{Op: opStdin, ID: f.id}, false)
		if err != nil {
			return
		}
		defer in.stream.Close()
		in.out.within = 0 // the process reads when it likes; its exit breaks the stream
		if in.copy(stdin) == nil {
			in.out.send(frame(kEnd, nil))
		}
	}()
}

// copy sends r as data, to its end. Its error is r's or the stream's.
func (k *call) copy(r io.Reader) error {
	buf := make([]byte, headerSize+maxData)
	for {
		n, err := r.Read(buf[headerSize:])
		if n > 0 {
			header(buf, kData, n)
			if err := k.out.send(buf[:headerSize+n]); err != nil {
				return k.wrap(err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &sourceError{err}
		}
	}
}

// sourceError is an error of what the caller gave us to read.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }
