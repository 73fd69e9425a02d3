package joblog

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"

	"github.com/terraphim/tgr"
)

// Range selects lines of one try of a job.
type Range struct {
	Try   int   // 0: the latest
	From  int64 // number of the first line, from 0
	Step  int   // only lines of this step; 0: all lines
	Limit int64 // at most this many lines; 0: all
}

// Line is a line with its number in the log, from 0.
type Line struct {
	tgr.LogLine
	Number int64 `json:"n"`
}

// errStop ends an iteration that its consumer has ended.
var errStop = errors.New("joblog: stop")

// view is a log at one moment.
type view struct {
	s      *Store
	name   string
	frames []frame
	rest   []byte // the lines after the frames
	first  int64  // number of the first of rest
	lines  int64  // of rest
	flaw   error  // what is wrong after all this, or nil

	live bool            // a writer may add to it
	wake <-chan struct{} // closed when it has
}

// total is the number of lines in v.
func (v *view) total() int64 { return v.first + v.lines }

// view looks at the log of a try (0: the latest) of a job. With wait, a live one gets its wake channel.
func (s *Store) view(job tgr.JobID, try int, wait bool) (*view, error) {
	s.mu.Lock()
	w := s.writers[job]
	s.mu.Unlock()
	if w != nil && (try == 0 || try == w.try) {
		return w.view(wait), nil
	}
	if try == 0 {
		var err error
		if try, err = s.latest(job); err != nil {
			return nil, fault("read", err)
		}
	}
	return s.stored(job, try)
}

// view looks at the log that w writes.
func (w *Writer) view(wait bool) *view {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shared = len(w.buf) > 0
	v := &view{s: w.s, name: w.name, frames: w.frames, rest: w.buf[:len(w.buf):len(w.buf)], first: w.cur.first, lines: int64(w.cur.lines), flaw: w.err, live: !w.closed}
	if w.closed {
		return v
	}
	v.flaw = nil
	if wait {
		if w.wake == nil {
			w.wake = make(chan struct{})
		}
		v.wake = w.wake
	}
	return v
}

// stored looks at a log that nobody writes.
func (s *Store) stored(job tgr.JobID, try int) (*view, error) {
	v := &view{s: s, name: s.file(job, try)}
	// The tail comes first: should its writer close in between, its lines are in both, not in neither.
	tail, err := os.ReadFile(v.name + ".tail")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault("read", err)
	}
	f, err := os.Open(v.name + ".zst")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, tgr.Errorf("joblog.read", tgr.NotFound, "job %d has no log of try %d", job, try)
	}
	if err != nil {
		return nil, fault("read", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fault("read", err)
	}
	v.frames, _, v.flaw = scan(v.name, f, info.Size())
	if n := len(v.frames); n > 0 {
		v.first = v.frames[n-1].next()
	}
	if v.flaw == nil && len(tail) > 0 {
		v.rest, v.lines, v.flaw = parseTail(v.name, tail, v.first)
	}
	return v, nil
}

// each calls fn with the lines of v that r selects, and returns the number of the line after the last that it
// looked at.
func (v *view) each(ctx context.Context, r Range, fn func(Line) error) (int64, error) {
	from := max(r.From, 0)
	if ctx.Err() != nil {
		return from, context.Cause(ctx)
	}
	if i := find(v.frames, from); i < len(v.frames) {
		f, err := os.Open(v.name + ".zst")
		if err != nil {
			return from, fault("read", err)
		}
		defer f.Close()
		for _, fr := range v.frames[i:] {
			if err := ctx.Err(); err != nil {
				return from, context.Cause(ctx)
			}
			if r.Step != 0 && (r.Step < fr.minStep || r.Step > fr.maxStep) {
				continue
			}
			raw, err := fr.unpack(v.name, f, v.s.dec)
			if err != nil {
				return from, fault("read", err)
			}
			if from, err = lines(v.name, raw, fr.first, from, r.Step, fn); err != nil {
				return from, err
			}
		}
	}
	if from < v.total() {
		var err error
		if from, err = lines(v.name, v.rest, v.first, from, r.Step, fn); err != nil {
			return from, err
		}
	}
	return max(from, v.total()), v.flaw
}

// lines calls fn with the lines of raw, the first of which is numbered first, that are of a step and not before from.
func lines(name string, raw []byte, first, from int64, step int, fn func(Line) error) (int64, error) {
	for n := first; len(raw) > 0; n++ {
		l, rest, ok := cutLine(raw)
		if !ok {
			return n, damaged(name, "line %d is none", n)
		}
		raw = rest
		if n < from || step != 0 && l.Step != step {
			continue
		}
		if err := fn(Line{LogLine: l, Number: n}); err != nil {
			return n + 1, err
		}
		from = n + 1
	}
	return from, nil
}

// Read yields the lines of r that are in the log now. An error ends the sequence; one of [tgr.NotFound] means that
// the job has no log, one of [tgr.Internal] that it is damaged after the lines that were yielded.
func (s *Store) Read(ctx context.Context, job tgr.JobID, r Range) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		v, err := s.view(job, r.Try, false)
		if err != nil {
			yield(Line{}, err)
			return
		}
		var n int64
		_, err = v.each(ctx, r, func(l Line) error {
			if n++; !yield(l, nil) || n == r.Limit {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop {
			yield(Line{}, err)
		}
	}
}

// Follow yields the lines of the latest try from the given number, and goes on with those that are appended until
// the writer closes or ctx ends (then it yields the cause of that). A log without a writer ends after its last line.
// Followers never delay the writer: a slow one catches up from the file.
func (s *Store) Follow(ctx context.Context, job tgr.JobID, from int64) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		s.mu.Lock()
		w := s.writers[job]
		s.mu.Unlock()
		look := func() (*view, error) { return s.view(job, 0, false) }
		if w != nil { // the same try to its end, even where another begins
			look = func() (*view, error) { return w.view(true), nil }
		}
		for {
			v, err := look()
			if err == nil {
				from, err = v.each(ctx, Range{From: from}, func(l Line) error {
					if !yield(l, nil) {
						return errStop
					}
					return nil
				})
			}
			if err != nil {
				if err != errStop {
					yield(Line{}, err)
				}
				return
			}
			if !v.live {
				return
			}
			select {
			case <-v.wake:
			case <-ctx.Done():
				yield(Line{}, context.Cause(ctx))
				return
			}
		}
	}
}

// Tail returns the last n lines of the latest try, and those that are readable where it is damaged, with the error.
func (s *Store) Tail(ctx context.Context, job tgr.JobID, n int) ([]Line, error) {
	v, err := s.view(job, 0, false)
	if err != nil {
		return nil, err
	}
	var out []Line
	_, err = v.each(ctx, Range{From: v.total() - int64(max(n, 0))}, func(l Line) error {
		out = append(out, l)
		return nil
	})
	return out, err
}
