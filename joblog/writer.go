package joblog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/terraphim/tgr"
)

// flushEvery is how long a line may be only in memory. A chunk that is full before that becomes a frame and never is in
// the tail.
const flushEvery = 200 * time.Millisecond

// Writer appends to one log. Its methods may be called concurrently.
type Writer struct {
	s    *Store
	job  tgr.JobID
	try  int
	name string // of the file, without extension

	mu      sync.Mutex
	file    *os.File // frames
	tail    *os.File // the lines of buf up to flushed
	end     int64    // of file
	frames  []frame  // only appended to: a reader may keep the slice
	buf     []byte   // the lines since the last frame; only appended to while shared
	cur     frame    // what buf holds
	shared  bool     // a reader holds buf
	flushed int      // bytes of buf that are in tail; 0: the tail may hold the lines of an earlier frame
	head    lineHead // of the line before
	packed  []byte   // scratch of seal
	timer   *time.Timer
	meter   meter
	err     error         // of a write: the log ended there
	closed  bool          //
	wake    chan struct{} // closed at the next change; nil while nobody waits
}

// newWriter opens the log called name, and takes up what an earlier writer left.
func newWriter(s *Store, job tgr.JobID, name string) (*Writer, error) {
	file, err := os.OpenFile(name+".zst", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tail, err := os.OpenFile(name+".tail", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	w := &Writer{s: s, job: job, name: name, file: file, tail: tail, meter: newMeter(s.cfg.Limits)}
	if err := w.recover(); err != nil {
		return nil, errors.Join(err, file.Close(), tail.Close())
	}
	return w, nil
}

// recover reads the frames and the tail of an earlier writer. What is torn or damaged is cut off.
func (w *Writer) recover() error {
	info, err := w.file.Stat()
	if err != nil {
		return err
	}
	frames, end, err := scan(w.name, w.file, info.Size())
	if err != nil && tgr.CodeOf(err) != tgr.Internal {
		return err
	}
	if err := w.file.Truncate(end); err != nil {
		return err
	}
	w.frames, w.end = frames, end
	for _, f := range frames {
		w.meter.job += int64(f.raw)
	}
	if n := len(frames); n > 0 {
		w.cur.first = frames[n-1].next()
	}
	old, err := io.ReadAll(io.LimitReader(w.tail, 2*maxRaw))
	if err != nil {
		return err
	}
	raw, _, _ := parseTail(w.name, old, w.cur.first) // what is damaged in it cannot be continued, and is left out
	for l, rest, ok := cutLine(raw); ok; l, rest, ok = cutLine(rest) {
		w.put(l)
	}
	return w.restartTail()
}

// Append adds lines in order. It returns when they are in the log's buffer, which is flushed every 200 ms or
// 256 KiB; it never waits for readers. A line that holds line feeds becomes several. An error is that of a flush: the
// log has ended there.
func (w *Writer) Append(lines ...tgr.LogLine) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return tgr.Errorf("joblog.append", tgr.Conflict, "the log of job %d is closed", w.job)
	}
	var now time.Time
	for _, l := range lines {
		if l.Time.IsZero() {
			if now.IsZero() {
				now = w.s.cfg.Now()
			}
			l.Time = now
		}
		l.Step = min(max(l.Step, 0), math.MaxInt32)
		for more := true; more; {
			var text string
			text, l.Text, more = cutText(l.Text, int(w.s.cfg.Limits.Line))
			w.meter.pass(tgr.LogLine{Time: l.Time, Step: l.Step, Text: text}, w.add)
		}
	}
	w.changed()
	return w.err
}

// cutText takes the first line off text: up to a line feed, or the longest that limit allows, at the end of a rune.
func cutText(text string, limit int) (line, rest string, more bool) {
	if i := strings.IndexByte(text, '\n'); i >= 0 && i <= limit {
		return strings.TrimSuffix(text[:i], "\r"), text[i+1:], i+1 < len(text)
	}
	if len(text) <= limit {
		return text, "", false
	}
	n := limit
	for i := 0; i < utf8.UTFMax-1 && n > 1 && !utf8.RuneStart(text[n]); i++ {
		n--
	}
	return text[:n], text[n:], true
}

// add stores a line, and seals when there is enough.
func (w *Writer) add(l tgr.LogLine) {
	if w.err != nil {
		return
	}
	w.put(l)
	if len(w.buf) >= chunk {
		w.fail(w.seal())
	}
}

// put adds a line to buf.
func (w *Writer) put(l tgr.LogLine) {
	if w.buf == nil {
		w.buf = make([]byte, 0, chunk+chunk/4)
	}
	// Of a flood, many lines in a row come at one time.
	if same := w.head.set(l); !same || w.cur.lines == 0 {
		w.cur.span(l)
	}
	w.buf = append(append(append(w.buf, w.head.text...), l.Text...), '\n')
	w.cur.lines++
}

// flush writes to the tail what is not in it.
func (w *Writer) flush() error {
	b := w.buf[w.flushed:]
	if len(b) == 0 {
		return nil
	}
	if w.flushed == 0 {
		return w.restartTail()
	}
	if _, err := w.tail.Write(b); err != nil {
		return err
	}
	w.flushed = len(w.buf)
	return nil
}

// seal makes a frame of buf. The tail keeps its lines until there are others: they are passed over by number.
func (w *Writer) seal() error {
	if len(w.buf) == 0 {
		return nil
	}
	f := w.cur
	if w.packed == nil {
		w.packed = make([]byte, headerLen, chunk/2)
	}
	out := w.s.enc.EncodeAll(w.buf, w.packed[:headerLen])
	w.packed = out
	f.offset, f.size, f.raw = w.end+headerLen, len(out)-headerLen, len(w.buf)
	copy(out, f.header())
	if _, err := w.file.WriteAt(out, w.end); err != nil {
		return err
	}
	w.end += int64(len(out))
	w.frames = append(w.frames, f)
	w.cur = frame{first: f.next()}
	if w.shared {
		w.buf, w.shared = nil, false
	} else {
		w.buf = w.buf[:0]
	}
	w.flushed = 0
	return nil
}

// restartTail makes the tail hold buf.
func (w *Writer) restartTail() error {
	if err := w.tail.Truncate(0); err != nil {
		return err
	}
	if _, err := w.tail.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.flushed = len(w.buf)
	_, err := w.tail.Write(append(tailHead(w.cur.first), w.buf...))
	return err
}

// fail keeps the first error: what follows it is not written, lest the log have a hole.
func (w *Writer) fail(err error) {
	if w.err == nil && err != nil {
		w.err = fault("append", fmt.Errorf("job %d: %w", w.job, err))
	}
}

// changed wakes followers, and sees to it that buf is flushed in time.
func (w *Writer) changed() {
	if w.wake != nil {
		close(w.wake)
		w.wake = nil
	}
	if w.timer == nil && w.flushed < len(w.buf) && w.err == nil && !w.closed {
		w.timer = time.AfterFunc(flushEvery, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.timer = nil
			if !w.closed {
				w.fail(w.flush())
			}
		})
	}
}

// Flush returns when all lines so far would be found by another process after the end of this one.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed && w.err == nil {
		w.fail(w.flush())
	}
	return w.err
}

// Steps counts the lines in the log that are of a step.
func (w *Writer) Steps() (n int, err error) {
	_, err = w.view(false).each(context.Background(), Range{}, func(l Line) error {
		if l.Step > 0 {
			n++
		}
		return nil
	})
	return n, err
}

// Close flushes, syncs and ends the log; those who follow it see its end. It returns the first error of any write.
// It may be called twice.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.err
	}
	w.meter.end(w.add)
	if w.err == nil {
		w.fail(w.seal())
	}
	if w.timer != nil {
		w.timer.Stop() // one that has fired already waits for mu, and then finds the log closed
	}
	w.fail(w.file.Sync())
	w.fail(errors.Join(w.file.Close(), w.tail.Close()))
	if w.err == nil {
		if err := os.Remove(w.name + ".tail"); !errors.Is(err, fs.ErrNotExist) {
			w.fail(err)
		}
		w.fail(syncDir(filepath.Dir(w.name)))
	}
	w.closed = true
	w.changed()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.writers, w.job)
	return w.err
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
