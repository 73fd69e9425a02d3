package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
)

// A job that outlives its server. What a job does next follows from what it was told so far: by its machine, by the
// sources of its files, and by the clock. A Tape takes that down. A server that starts again runs the job from its
// beginning with the Recording: whatever is on it is answered from there, without the machine, and the log, which has
// those lines already, gets none of them. Where the recording ends the machine is asked again, and a process that still
// runs there is attached to: no byte of its output is lost, and none is logged twice.
//
// Of the output of a process the tape keeps only the lines that did something, such as workflow commands: a flood costs
// nothing. What cannot be told again so that the job would go on alike (a cancelled job, steps that run at once) spoils
// the tape.

// Tape takes down what a job is told.
type Tape interface {
	// Append adds a line, which has no line feed. When it returns the line outlives this process. After an error nothing
	// more is appended, and the job goes on without a tape.
	Append(line []byte) error
}

// Flusher is a Sink that can make sure that all lines which it was given outlive this process.
type Flusher interface{ Flush() error }

// Recording is what a Tape took down.
type Recording struct{ entries []entry }

// ErrSpoilt is a recording with which its job cannot go on; the job can only begin anew.
var ErrSpoilt = errors.New("the job cannot go on from what was recorded of it")

// ReadRecording reads the lines that a Tape was given. A last line that is torn is left out. A recording that cannot be
// used is ErrSpoilt.
func ReadRecording(r io.Reader) (*Recording, error) {
	rec := &Recording{}
	d := json.NewDecoder(r)
	for {
		var e entry
		if err := d.Decode(&e); err != nil {
			break
		}
		if e.Op == opSpoilt {
			return nil, fmt.Errorf("%w: %s", ErrSpoilt, e.Key)
		}
		rec.entries = append(rec.entries, e)
	}
	if len(rec.entries) == 0 || rec.entries[0].Op != opBegin {
		return nil, fmt.Errorf("%w: it has no beginning", ErrSpoilt)
	}
	return rec, nil
}

// Spoils reports whether a line that a Tape was given says that the job cannot go on from it.
func Spoils(line []byte) bool { return bytes.HasPrefix(line, []byte(`{"op":"`+opSpoilt+`"`)) }

// Operations of entries.
const (
	opBegin    = "begin"
	opExec     = "exec"   // a process is about to be started
	opOutput   = "output" // so much of its output was taken
	opExit     = "exit"
	opPut      = "put"
	opGet      = "get"
	opCheckout = "checkout"
	opAction   = "action"
	opSpoilt   = "spoilt"
)

// entry is one line of a tape.
type entry struct {
	Op  string    `json:"op"`
	At  time.Time `json:"at"`
	Key string    `json:"key,omitempty"` // what was asked for: it is asked for again, or the job has gone another way
	// Of a process: its id, and of output and exit, how many bytes of its output were taken, how many lines the job had
	// logged by then, the lines of output since the entry before that did something, and what is left of a line.
	ID    string      `json:"id,omitempty"`
	Seq   uint64      `json:"seq,omitempty"`
	Lines int         `json:"lines,omitempty"`
	Did   []string    `json:"did,omitempty"`
	Rest  []byte      `json:"rest,omitempty"`
	Out   []byte      `json:"out,omitempty"` // all of it, where it is for the runner itself
	Err   []byte      `json:"err,omitempty"` // apart from Out
	Exit  *guest.Exit `json:"exit,omitempty"`

	Data    []byte   `json:"data,omitempty"` // of get
	Skipped []string `json:"skipped,omitempty"`
	SHA     string   `json:"sha,omitempty"` // of checkout and action
	Ref     string   `json:"ref,omitempty"`
	Fault   string   `json:"fault,omitempty"`   // what the machine could not do for the job's sake
	Missing bool     `json:"missing,omitempty"` // because there is no such file
}

const (
	saveBytes = 256 << 10              // of output between two entries: a part of what the agent keeps for who attaches
	saveEvery = 200 * time.Millisecond // at the least, while there is output
	maxRaw    = 1 << 20                // bytes of output for the runner itself, and of a file or folder
)

// taped is the machine of a job that may be resumed. Its methods are called without the run's lock.
type taped struct {
	Machine
	run *run
	to  Tape
	now func() time.Time

	mu       sync.Mutex
	played   []entry   // what is left of the recording
	inner    []entry   // what the output of the process that is replayed asked the machine for
	at       time.Time // of the last entry that was replayed
	spoilt   error
	draining bool // the tar of a put that was done is passed over
}

// tape puts the job's machine, its sources and its clock on tape, if there is one. It returns how long ago the job began.
func (r *run) tape(rec *Recording) (ago time.Duration) {
	c := &r.config
	if c.Tape == nil {
		return 0
	}
	now := c.Now
	t := &taped{Machine: c.Machine, run: r, to: c.Tape, now: now}
	c.Machine, r.taped = t, t
	if rec != nil {
		t.played, t.at = rec.entries[1:], rec.entries[0].At
		ago = now().Sub(t.at)
	} else {
		t.append(entry{Op: opBegin})
	}
	c.Now = func() time.Time {
		if at, ok := t.then(); ok {
			return at
		}
		return now()
	}
	r.clock.behind = func() time.Duration { return now().Sub(c.Now()) }
	c.Sink = resumedSink{c.Sink, t}
	if c.Checkout != nil {
		c.Checkout = tapedCheckout{c.Checkout, t}
	}
	if c.Actions != nil {
		c.Actions = tapedActions{c.Actions, t}
	}
	return ago
}

// spoil ends the tape: the job cannot be resumed any more. It may be called without a tape.
func (t *taped) spoil(format string, args ...any) {
	if t == nil {
		return
	}
	t.append(entry{Op: opSpoilt, Key: fmt.Sprintf(format, args...)})
}

// append takes an entry down, unless the tape is spoilt.
func (t *taped) append(e entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spoilt != nil {
		return
	}
	e.At = t.now()
	line, err := json.Marshal(e)
	if err == nil {
		err = t.to.Append(line)
	}
	if err == nil && e.Op == opSpoilt {
		err = errors.New(e.Key)
	}
	if t.spoilt = err; err != nil {
		t.run.config.Log.Info("the job will not outlive this server", "reason", err)
	}
}

// replaying reports whether there is a rest of the recording. It may be called without a tape.
func (t *taped) replaying() bool {
	_, ok := t.then()
	return ok
}

// then is when what is being replayed happened.
func (t *taped) then() (time.Time, bool) {
	if t == nil {
		return time.Time{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at, len(t.played) > 0
}

// next takes the next entry of the recording, which has to be of this operation. ok is false where it has ended.
func (t *taped) next(op, key string) (e entry, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := &t.inner
	if len(t.inner) == 0 {
		from = &t.played
	}
	if len(*from) == 0 {
		return entry{}, false, nil
	}
	e = (*from)[0]
	if e.Op != op || e.Key != key {
		return entry{}, false, tgr.Errorf("job.resume", tgr.Internal, "the job went another way than before: %s %s instead of %s %s", op, excerpt(key), e.Op, excerpt(e.Key))
	}
	*from, t.at = (*from)[1:], e.At
	return e, true, nil
}

// rest takes what the recording says of the output and the exit of the process that next was asked for.
func (t *taped) rest() (list []entry, exited bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.played) > 0 && !exited {
		e := t.played[0]
		t.played, t.at = t.played[1:], e.At
		if e.Op != opOutput && e.Op != opExit { // a problem matcher was read
			t.inner = append(t.inner, e)
			continue
		}
		list, exited = append(list, e), e.Op == opExit
	}
	return list, exited
}

// took takes down what became of an operation. What the machine could not do for the job's sake is a part of that; any
// other error is the end of the job, or of its tape.
func (t *taped) took(ctx context.Context, e entry, err error) {
	var remote *guest.RemoteError
	switch {
	case ctx.Err() != nil || t.run.clock.cancelled():
		t.spoil("it was cancelled, or its time was up")
		return
	case errors.Is(err, guest.ErrLost), errors.Is(err, guest.ErrProtocol):
		return // it is done again
	case errors.Is(err, fs.ErrNotExist):
		e.Fault, e.Missing = err.Error(), true
	case errors.As(err, &remote):
		e.Fault = err.Error()
	case err != nil:
		t.spoil("%s %s: %v", e.Op, e.Key, err)
		return
	}
	t.append(e)
}

// err is the error that was taken down.
func (e entry) err() error {
	switch {
	case e.Fault == "":
		return nil
	case e.Missing:
		return replayedError{e.Fault, fs.ErrNotExist}
	default:
		return replayedError{e.Fault, &guest.RemoteError{Message: e.Fault}}
	}
}

type replayedError struct {
	text string
	kind error
}

// Error is what the error said.
func (e replayedError) Error() string { return e.text }

// Unwrap is what kind of error it was.
func (e replayedError) Unwrap() error { return e.kind }

// Put implements Machine.
func (t *taped) Put(ctx context.Context, dir string, tar io.Reader) error {
	e, ok, err := t.next(opPut, dir)
	if err != nil {
		return err
	}
	if ok {
		t.drain(true)
		defer t.drain(false)
		if _, err := io.Copy(io.Discard, tar); err != nil { // somebody may read the same on the way
			return err
		}
		return e.err()
	}
	err = t.Machine.Put(ctx, dir, tar)
	t.took(ctx, entry{Op: opPut, Key: dir}, err)
	return err
}

func (t *taped) drain(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.draining = on
}

// Get implements Machine.
func (t *taped) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	e, ok, err := t.next(opGet, path)
	if err != nil {
		return nil, err
	}
	if ok {
		if err := e.err(); err != nil {
			return nil, err
		}
		return &replayedTree{bytes.NewReader(e.Data), e.Skipped}, nil
	}
	src, err := t.Machine.Get(ctx, path)
	if err != nil {
		t.took(ctx, entry{Op: opGet, Key: path}, err)
		return nil, err
	}
	return &tapedTree{ReadCloser: src, t: t, ctx: ctx, e: entry{Op: opGet, Key: path}}, nil
}

// replayedTree is what a Get gave.
type replayedTree struct {
	*bytes.Reader
	skipped []string
}

// Close does nothing.
func (*replayedTree) Close() error { return nil }

// Skipped names what was left out.
func (t *replayedTree) Skipped() []string { return t.skipped }

// tapedTree takes down what a Get gives, when it is closed.
type tapedTree struct {
	io.ReadCloser
	t    *taped
	ctx  context.Context // of the Get
	e    entry
	fail error
	once sync.Once
}

// Read reads on.
func (g *tapedTree) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if room := maxRaw - len(g.e.Data); n <= room {
		g.e.Data = append(g.e.Data, p[:n]...)
	} else if g.fail == nil {
		g.fail = fmt.Errorf("there are more than %d bytes", maxRaw)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		g.fail = err
	}
	return n, err
}

// Skipped names what was left out.
func (g *tapedTree) Skipped() []string {
	if s, ok := g.ReadCloser.(interface{ Skipped() []string }); ok {
		return s.Skipped()
	}
	return nil
}

// Close gives up the rest.
func (g *tapedTree) Close() error {
	g.once.Do(func() {
		g.e.Skipped = g.Skipped()
		g.t.took(g.ctx, g.e, g.fail)
	})
	return g.ReadCloser.Close()
}

// resumedSink is told of no steps that the store knows already.
type resumedSink struct {
	Sink
	t *taped
}

// Steps implements Sink.
func (s resumedSink) Steps(steps []tgr.Step) {
	if !s.t.replaying() {
		s.Sink.Steps(steps)
	}
}

// Flush implements Flusher.
func (s resumedSink) Flush() error {
	if f, ok := s.Sink.(Flusher); ok {
		return f.Flush()
	}
	return nil
}

// tapedCheckout takes down which commit was checked out.
type tapedCheckout struct {
	CheckoutSource
	t *taped
}

// Checkout implements CheckoutSource. The files of a checkout that was done are not fetched again.
func (s tapedCheckout) Checkout(ctx context.Context, r CheckoutRequest) (CheckoutResult, error) {
	key := r.Repository + " " + r.Ref + " " + r.SHA
	e, ok, err := s.t.next(opCheckout, key)
	if err != nil {
		return CheckoutResult{}, err
	}
	if ok {
		open := func() (io.ReadCloser, error) {
			again := r
			again.SHA, again.Ref = e.SHA, ""
			res, err := s.CheckoutSource.Checkout(ctx, again)
			return res.Tar, err
		}
		return CheckoutResult{SHA: e.SHA, Ref: e.Ref, Tar: &lateTar{t: s.t, open: open}}, nil
	}
	res, err := s.CheckoutSource.Checkout(ctx, r)
	s.t.took(ctx, entry{Op: opCheckout, Key: key, SHA: res.SHA, Ref: res.Ref}, err)
	return res, err
}

// lateTar is a tar that is fetched when it turns out that it is needed.
type lateTar struct {
	t    *taped
	open func() (io.ReadCloser, error)
	src  io.ReadCloser
}

// Read reads on, unless the machine has it already.
func (l *lateTar) Read(p []byte) (int, error) {
	l.t.mu.Lock()
	there := l.t.draining
	l.t.mu.Unlock()
	if there {
		return 0, io.EOF
	}
	if l.src == nil {
		src, err := l.open()
		if err != nil {
			return 0, err
		}
		l.src = src
	}
	return l.src.Read(p)
}

// Close closes what was opened.
func (l *lateTar) Close() error {
	if l.src == nil {
		return nil
	}
	return l.src.Close()
}

// tapedActions takes down which commits actions were.
type tapedActions struct {
	ActionSource
	t *taped
}

// Action implements ActionSource.
func (s tapedActions) Action(ctx context.Context, repo, ref string) (sha string, tar io.ReadCloser, err error) {
	key := repo + "@" + ref
	e, ok, err := s.t.next(opAction, key)
	if err != nil {
		return "", nil, err
	}
	if ok { // the same commit, whatever its tag or branch is by now; it is read again for what it is made of
		_, tar, err := s.ActionSource.Action(ctx, repo, e.SHA)
		return e.SHA, tar, err
	}
	sha, tar, err = s.ActionSource.Action(ctx, repo, ref)
	s.t.took(ctx, entry{Op: opAction, Key: key, SHA: sha}, err)
	return sha, tar, err
}
