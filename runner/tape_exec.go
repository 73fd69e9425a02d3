package runner

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
)

// attacher is a Machine whose processes outlive who started them, as *guest.Client is.
type attacher interface {
	Attach(ctx context.Context, a guest.Attachment) (guest.Exit, error)
}

// Exec implements Machine.
func (t *taped) Exec(ctx context.Context, c guest.Cmd, out io.Writer) (guest.Exit, error) {
	key := strings.Join(append([]string{c.User, c.Dir}, c.Args...), "\x00")
	e, ok, err := t.next(opExec, key)
	if err != nil {
		return guest.Exit{}, err
	}
	l := t.listener(out, c.Stderr)
	if ok {
		l.id = e.ID
		parts, exited := t.rest()
		for _, p := range parts {
			l.replay(p)
		}
		if exited {
			return *parts[len(parts)-1].Exit, parts[len(parts)-1].err()
		}
		if c.Stdin != nil { // it was not told all, and does no more than look at files, or log in: it is done again
			l.id = rand.Text()
			exit, err := t.begin(ctx, c, l)
			return l.ended(ctx, exit, err)
		}
		exit, err := t.attach(ctx, c, l)
		if errors.Is(err, fs.ErrNotExist) && l.seq == 0 {
			// The agent keeps the last one that has ended, whoever was told so: it was never started.
			exit, err = t.begin(ctx, c, l)
		}
		return l.ended(ctx, exit, err)
	}
	l.id = rand.Text()
	t.append(entry{Op: opExec, Key: key, ID: l.id})
	exit, err := t.begin(ctx, c, l)
	return l.ended(ctx, exit, err)
}

// begin starts a process.
func (t *taped) begin(ctx context.Context, c guest.Cmd, l *listener) (guest.Exit, error) {
	c.ID = l.id
	if c.Stderr != nil {
		c.Stderr = tap{l, l.stderr, &l.raw.err}
	}
	return t.Machine.Exec(ctx, c, l)
}

// attach goes on with the process that ran when the recording ended.
func (t *taped) attach(ctx context.Context, c guest.Cmd, l *listener) (guest.Exit, error) {
	a, ok := t.Machine.(attacher)
	if !ok {
		return guest.Exit{}, tgr.Errorf("job.resume", tgr.Unavailable, "the process that ran when the server ended cannot be attached to")
	}
	at := guest.Attachment{ID: l.id, From: l.seq, Out: l, Grace: c.Grace}
	if c.Stderr != nil {
		at.Stderr = tap{l, l.stderr, &l.raw.err}
	}
	exit, err := a.Attach(ctx, at)
	if errors.Is(err, guest.ErrGone) { // which is not the job's fault, as what the agent refuses otherwise is
		err = tgr.Errorf("job.resume", tgr.Unavailable, "the output of the process that ran when the server ended is not kept any more: %v", err)
	}
	return exit, err
}

// listener passes the output of a process on, and takes down how far it has come.
type listener struct {
	t      *taped
	id     string
	out    io.Writer // standard output, or both
	stderr io.Writer
	o      *output // out, where lines do something; nil: the output is for the runner itself

	seq   uint64 // bytes taken, of both
	saved uint64
	when  time.Time // of the last entry
	raw   struct {
		mu       sync.Mutex
		out, err bytes.Buffer
		over     bool
	}
}

func (t *taped) listener(out, stderr io.Writer) *listener {
	l := &listener{t: t, out: out, stderr: stderr, when: t.now()}
	l.o, _ = out.(*output)
	return l
}

// Write takes output.
func (l *listener) Write(p []byte) (int, error) {
	n, err := l.out.Write(p)
	if l.seq += uint64(n); l.o == nil {
		l.keep(&l.raw.out, p[:n])
		return n, err
	}
	if l.seq-l.saved >= saveBytes || l.t.now().Sub(l.when) >= saveEvery {
		l.save()
	}
	return n, err
}

// tap is where output goes that is apart.
type tap struct {
	l    *listener
	to   io.Writer
	keep *bytes.Buffer
}

// Write takes output.
func (w tap) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.l.seq += uint64(n)
	w.l.keep(w.keep, p[:n])
	return n, err
}

func (l *listener) keep(b *bytes.Buffer, p []byte) {
	if l.out == io.Discard {
		return
	}
	l.raw.mu.Lock()
	defer l.raw.mu.Unlock()
	if l.raw.over = l.raw.over || b.Len()+len(p) > maxRaw; !l.raw.over {
		b.Write(p)
	}
}

// save takes down what was taken of the output, up to the end of its last line.
func (l *listener) save() {
	defer l.o.lock()()
	if l.o.cr || l.o.drop || l.o.split { // in the middle of what is one
		return
	}
	l.t.append(l.entry(opOutput, l.seq-uint64(len(l.o.buf))))
	l.saved, l.when = l.seq, l.t.now()
}

// entry is called with what o needs locked. Whoever resumes the job skips the lines that the log has: it must have them.
func (l *listener) entry(op string, seq uint64) entry {
	e := entry{Op: op, Seq: seq, Lines: l.t.run.lines, Did: l.o.did}
	l.o.did = nil
	if err := (resumedSink{l.t.run.config.Sink, l.t}).Flush(); err != nil {
		l.t.run.config.Log.Warn("flush the job's log", "error", err)
	}
	return e
}

// ended takes down how the process has ended.
func (l *listener) ended(ctx context.Context, exit guest.Exit, err error) (guest.Exit, error) {
	if l.raw.over {
		l.t.spoil("a process wrote more than %d bytes for the runner itself", maxRaw)
		return exit, err
	}
	e := entry{Op: opExit, Out: l.raw.out.Bytes(), Err: l.raw.err.Bytes()}
	if l.o != nil {
		unlock := l.o.lock()
		if l.o.cr || l.o.drop {
			l.t.spoil("its output ended in the middle of a line")
		}
		e = l.entry(opExit, l.seq)
		e.Rest = bytes.Clone(l.o.buf)
		unlock()
	}
	e.Exit = &exit
	l.t.took(ctx, e, err)
	return exit, err
}

// replay does what a part of the output did.
func (l *listener) replay(e entry) {
	if l.o == nil {
		l.out.Write(e.Out)
		if l.stderr != nil {
			l.stderr.Write(e.Err)
		}
		return
	}
	r := l.t.run
	defer l.o.lock()()
	r.mute = true
	for _, line := range e.Did {
		l.o.line(line)
	}
	r.mute = false
	l.seq, l.saved, r.lines = e.Seq, e.Seq, e.Lines
	l.o.did, l.o.buf = nil, bytes.Clone(e.Rest)
}
