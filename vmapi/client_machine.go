package vmapi

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr/guest"
)

// Machine is a machine of a server. It does what the agent's client does, over HTTP: Exec, Put and Get. Its methods
// are safe for concurrent use.
type Machine struct {
	c     *Client
	id    string
	plain *plain // how a server that knows only fcctl-web's calls is spoken to; nil: one of ours
	vm    VM
	stop  context.CancelFunc // of the lease
	keep  sync.WaitGroup
}

// VM is what the server said of the machine when it was ready.
func (m *Machine) VM() VM { return m.vm }

// ID is the server's name of the machine.
func (m *Machine) ID() string { return m.id }

// Start makes a machine and returns when commands can be run in it. While the server is at capacity it asks again,
// until ctx ends. A machine that does not become ready is freed again. The caller closes the Machine, whose lease is
// renewed until then: if the caller dies, the server frees it.
func (c *Client) Start(ctx context.Context, req CreateRequest) (*Machine, error) {
	original, err := c.original(ctx)
	if err != nil {
		return nil, err
	}
	if !original {
		req.LeaseSeconds = int(leaseFor / time.Second)
		req.WaitSeconds = 10
	} else {
		req = CreateRequest{VMName: req.Name, VMType: req.VMType} // all that it knows
	}
	v, err := c.createWhenRoom(ctx, req)
	if err != nil {
		return nil, err
	}
	m := &Machine{c: c, id: v.ID, vm: v, stop: func() {}}
	if err := m.ready(ctx, original); err != nil {
		return nil, errors.Join(fmt.Errorf("machine %s: %w", v.ID, err), m.delete(ctx))
	}
	if !original {
		m.lease()
	}
	return m, nil
}

// Open returns a machine that runs already. Close leaves it alone.
func (c *Client) Open(ctx context.Context, id string) (*Machine, error) {
	v, err := c.Get(ctx, id, 0)
	if err != nil {
		return nil, err
	}
	original, err := c.original(ctx)
	if err != nil {
		return nil, err
	}
	m := &Machine{c: c, id: v.ID, vm: v, stop: func() {}}
	if original {
		m.plain = newPlain(c, v.ID)
		m.vm.Place, m.vm.Kernel, err = m.plain.probe(ctx)
	}
	return m, err
}

// createWhenRoom asks for a machine until there is room for one.
func (c *Client) createWhenRoom(ctx context.Context, req CreateRequest) (VM, error) {
	for {
		v, err := c.Create(ctx, req, "")
		var refused *Error
		if !errors.As(err, &refused) || !refused.full() {
			return v, err
		}
		c.cfg.Log.Info("the VM API has no room", "error", err)
		if err := pause(ctx, cmp.Or(refused.RetryAfter, capacityAgain)); err != nil {
			return VM{}, fmt.Errorf("%w: %w", err, refused)
		}
	}
}

// full reports whether a refusal means that there is no room now. The original says so in words alone.
func (e *Error) full() bool {
	switch e.Status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return true
	case http.StatusUnauthorized, http.StatusNotFound:
		return false
	}
	return strings.Contains(strings.ReplaceAll(strings.ToLower(e.Message), "_", " "), "at capacity")
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// ready waits until the machine can be used. That the original calls it running does not mean that ssh is there.
func (m *Machine) ready(ctx context.Context, original bool) error {
	for {
		switch strings.ToLower(m.vm.Status) {
		case "running", "ready":
			if !original {
				return nil
			}
			var err error
			m.plain = newPlain(m.c, m.id)
			m.vm.Place, m.vm.Kernel, err = m.plain.probe(ctx)
			return err
		case "failed", "error", "stopped", "stopping", "gone", "deleted":
			return fmt.Errorf("it did not become ready: it is %s: %s", clip(m.vm.Status, 50), cmp.Or(clip(m.vm.Reason, 4096), "the VM API gives no reason"))
		}
		wait := 10 * time.Second
		if original {
			if err := pause(ctx, pollEvery); err != nil {
				return err
			}
			wait = 0
		}
		v, err := m.c.Get(ctx, m.id, wait)
		if err != nil {
			return err
		}
		m.vm = v
	}
}

// lease keeps the machine ours.
func (m *Machine) lease() {
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.keep.Go(func() {
		for pause(ctx, leaseFor/3) == nil {
			if _, err := m.c.Lease(ctx, m.id, leaseFor); err != nil && ctx.Err() == nil {
				m.c.cfg.Log.Warn("renew the lease of a machine", "vm", m.id, "error", err)
			}
		}
	})
}

// Close frees the machine, if Start made it. It is idempotent.
func (m *Machine) Close() error {
	m.stop()
	m.keep.Wait()
	return m.delete(context.Background())
}

// Outcome notes how what the machine was for ended: completed or failed. A server of the original kind keeps no such
// note, and is not told.
func (m *Machine) Outcome(ctx context.Context, outcome string) error {
	if m.plain != nil {
		return nil
	}
	return m.c.Outcome(ctx, m.id, outcome)
}

// Keep ends the renewal of the lease and leaves the machine for d to whoever wants to look at it, as failed.
func (m *Machine) Keep(ctx context.Context, d time.Duration) error {
	if m.plain != nil {
		return unsupported("the VM API at %s has no leases, and would keep the machine for ever", m.c.base.Host)
	}
	m.stop()
	m.keep.Wait()
	_, err := m.c.Lease(ctx, m.id, d)
	return errors.Join(err, m.c.Outcome(ctx, m.id, "failed"))
}

func (m *Machine) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), deleteWithin, errors.New("the VM API does not answer"))
	defer cancel()
	if err := m.c.Delete(ctx, m.id, ""); err != nil {
		return fmt.Errorf("free the machine %s: %w", m.id, err)
	}
	return nil
}

// Put unpacks a tar stream below dir.
func (m *Machine) Put(ctx context.Context, dir string, tar io.Reader) error {
	if m.plain != nil {
		return m.plain.put(ctx, dir, tar)
	}
	// A reader that is closed by the transport must not close the caller's.
	err := m.c.ask(ctx, call{method: "PUT", path: vmPath(m.id, "files"), query: url.Values{"path": {dir}}, body: io.MultiReader(tar)}, nil)
	if err != nil {
		return fmt.Errorf("put into %s: %w", dir, err)
	}
	return nil
}

// Get returns a tar stream of a file or a folder. The caller closes it.
func (m *Machine) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	if m.plain != nil {
		return m.plain.get(ctx, path)
	}
	answer, err := m.c.send(ctx, call{method: "GET", path: vmPath(m.id, "files"), query: url.Values{"path": {path}}})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	return &remoteTree{answer.Body, ctx}, nil
}

// remoteTree says of a stream that breaks that the machine is lost.
type remoteTree struct {
	io.ReadCloser
	ctx context.Context
}

// Read reads the tar; io.EOF means that all of it was sent.
func (t *remoteTree) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		if t.ctx.Err() != nil {
			return n, context.Cause(t.ctx)
		}
		err = fmt.Errorf("%w: %w", guest.ErrLost, err)
	}
	return n, err
}

// Resize sets the size of the terminal of a running command.
func (m *Machine) Resize(ctx context.Context, id string, size guest.WindowSize) error {
	if m.plain != nil {
		return unsupported("the VM API at %s has no terminals", m.c.base.Host)
	}
	return m.c.quick(ctx, call{method: "POST", path: vmPath(m.id, "exec", id, "resize"), in: WindowSize(size)}, nil)
}

// silence is how long the stream of a command may show nothing, not even a beat.
const silence = 4 * beatEvery

// cancelSlack is what the server may take over the grace until it reports the end of a cancelled command.
const cancelSlack = 30 * time.Second

// Exec runs cmd as the agent's client does: Exit is the command's verdict, and the error the machinery's.
func (m *Machine) Exec(ctx context.Context, cmd guest.Cmd, out io.Writer) (guest.Exit, error) {
	if ctx.Err() != nil {
		return guest.Exit{}, context.Cause(ctx)
	}
	if cmd.ID == "" {
		cmd.ID = "exec-" + strings.ToLower(rand.Text()[:16])
	}
	if out == nil {
		out = io.Discard
	}
	if m.plain != nil {
		return m.plain.exec(ctx, cmd, out)
	}
	// The stream does not end with ctx: the command is asked to end, and goes on to be listened to.
	life, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	x := &remoteExec{m: m, cmd: cmd, out: out, life: life}
	x.quiet = time.AfterFunc(silence, func() { abort(fmt.Errorf("%w: silent for %v", guest.ErrLost, silence)) })
	defer x.quiet.Stop()
	defer context.AfterFunc(ctx, func() {
		x.cancel()
		time.AfterFunc(cmd.Grace+cancelSlack, func() {
			abort(fmt.Errorf("%w: the command did not end within %v of its cancellation", guest.ErrLost, cmd.Grace+cancelSlack))
		})
	})()
	exit, err := x.run()
	if ctx.Err() != nil && (err == nil || !errors.Is(err, guest.ErrLost)) {
		err = context.Cause(ctx)
	}
	return exit, err
}

// remoteExec is a command that runs on a server of ours.
type remoteExec struct {
	m     *Machine
	cmd   guest.Cmd
	out   io.Writer
	life  context.Context // of the stream
	quiet *time.Timer
}

// requestOf is what the server is asked for.
func requestOf(c guest.Cmd) ExecRequest {
	q := ExecRequest{ID: c.ID, Dir: Text(c.Dir), User: c.User, Stdin: c.Stdin != nil, Split: c.Stderr != nil, GraceMS: c.Grace.Milliseconds()}
	for _, a := range c.Args {
		q.Args = append(q.Args, Text(a))
	}
	for _, e := range c.Env {
		q.Env = append(q.Env, Text(e))
	}
	if c.TTY != nil {
		q.TTY = &WindowSize{Rows: c.TTY.Rows, Cols: c.TTY.Cols}
	}
	return q
}

func (x *remoteExec) run() (guest.Exit, error) {
	if len(x.cmd.Args) == 0 {
		return guest.Exit{Code: 127, Message: "no program was named"}, nil
	}
	answer, err := x.m.c.send(x.life, call{method: "POST", path: vmPath(x.m.id, "exec"), in: requestOf(x.cmd)})
	if err != nil {
		return guest.Exit{}, fmt.Errorf("exec: %w", err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		x.quiet.Reset(silence)
		var ev Event
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			return guest.Exit{}, fmt.Errorf("exec: %w: %w", guest.ErrProtocol, err)
		}
		exit, over, err := x.event(ev)
		if over || err != nil {
			return exit, err
		}
	}
	err = lines.Err()
	if cause := context.Cause(x.life); cause != nil {
		err = cause
	}
	return guest.Exit{}, fmt.Errorf("exec: the stream broke off: %w: %w", guest.ErrLost, cmp.Or(err, io.ErrUnexpectedEOF))
}

// event takes one line of the answer, and reports whether it was the last.
func (x *remoteExec) event(ev Event) (exit guest.Exit, over bool, err error) {
	switch ev.Type {
	case "started":
		x.feed()
	case "stdout", "stderr":
		w := x.out
		if ev.Type == "stderr" && x.cmd.Stderr != nil {
			w = x.cmd.Stderr
		}
		if _, err := w.Write(ev.Data); err != nil {
			x.cancel()
			return exit, true, fmt.Errorf("exec: output: %w", err)
		}
	case "exit":
		e := ev.Exit
		if e == nil || e.Signal == "" && (e.Code < 0 || e.Code > 255) {
			return exit, true, fmt.Errorf("exec: %w: an exit without a status", guest.ErrProtocol)
		}
		return guest.Exit{Code: e.Code, Signal: clip(e.Signal, 32), Started: e.Started, Message: clip(e.Message, 4096),
			Duration: duration(e.DurationMS), CPU: duration(e.CPUMS), Memory: e.Memory, Shortage: guest.Shortage(e.Shortage).Known()}.Bounded(), true, nil
	case "error":
		if ev.Error == nil {
			return exit, true, fmt.Errorf("exec: %w: an error without a message", guest.ErrProtocol)
		}
		return exit, true, fmt.Errorf("exec: %w", &Error{Status: http.StatusOK, Code: clip(ev.Error.Code, 64), Message: clip(ev.Error.Error, 4096)})
	case "beat":
	default:
		return exit, true, fmt.Errorf("exec: %w: an event of type %q", guest.ErrProtocol, clip(ev.Type, 32))
	}
	return exit, false, nil
}

// feed sends standard input. Nobody waits for it: it may hang in a Read, and what the command did not take is of no
// interest after its end.
func (x *remoteExec) feed() {
	if x.cmd.Stdin == nil {
		return
	}
	in := x.cmd.Stdin
	x.cmd.Stdin = nil
	go func() {
		k := call{method: "POST", path: vmPath(x.m.id, "exec", x.cmd.ID, "stdin"), body: io.MultiReader(in)}
		if err := x.m.c.ask(x.life, k, nil); err != nil && x.life.Err() == nil {
			x.m.c.cfg.Log.Debug("standard input", "vm", x.m.id, "error", err)
		}
	}()
}

// cancel asks for the end of the command, again where the server has not begun it yet, or does not answer.
func (x *remoteExec) cancel() {
	for {
		err := x.m.c.quick(x.life, call{method: "POST", path: vmPath(x.m.id, "exec", x.cmd.ID, "cancel")}, nil)
		if err == nil || pause(x.life, cancelAgain) != nil {
			return
		}
	}
}

// cancelAgain is how long after an attempt to end a command the next one is made.
const cancelAgain = 100 * time.Millisecond
