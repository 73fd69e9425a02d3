package joblog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"sort"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/terraphim/tgr"
)

const (
	maxLine = 1 << 20   // bytes of text of one line
	chunk   = 256 << 10 // bytes of lines after which they become a frame
	// maxRaw is more than any frame holds: a chunk, and one last line with its time and step.
	maxRaw = chunk + maxLine + 4096

	// A header is a zstd skippable frame: 8 bytes of zstd's (magic, length), then ours.
	headerLen     = 60
	headerMagic   = 0x184D2A5E // one of the sixteen that decoders skip
	headerVersion = 1          // 1: the first
)

// frame is where some lines are and what they are about.
type frame struct {
	offset     int64 // of its data in the file, after the header
	size       int   // of its data
	raw        int   // size when decompressed
	first      int64 // number of its first line
	lines      int
	minStep    int
	maxStep    int
	start, end time.Time // of its lines, the earliest and the latest
}

// next is the number of the line after the frame.
func (f frame) next() int64 { return f.first + int64(f.lines) }

// header is f as it is written before its data.
func (f frame) header() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, headerLen)
	for _, v := range []uint32{headerMagic, headerLen - 8, headerVersion, uint32(f.size), uint32(f.raw), uint32(f.lines), uint32(f.minStep), uint32(f.maxStep)} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint64{uint64(f.first), uint64(f.start.UnixNano()), uint64(f.end.UnixNano())} {
		b = le.AppendUint64(b, v)
	}
	return le.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// parseHeader reads what header wrote.
func parseHeader(b []byte) (f frame, ok bool) {
	le := binary.LittleEndian
	if len(b) != headerLen || le.Uint32(b) != headerMagic || le.Uint32(b[4:]) != headerLen-8 || le.Uint32(b[8:]) != headerVersion ||
		le.Uint32(b[56:]) != crc32.Checksum(b[:56], crc32.MakeTable(crc32.Castagnoli)) {
		return f, false
	}
	u := func(i int) int { return int(le.Uint32(b[i:])) }
	f = frame{size: u(12), raw: u(16), lines: u(20), minStep: u(24), maxStep: u(28), first: int64(le.Uint64(b[32:])),
		start: time.Unix(0, int64(le.Uint64(b[40:]))).UTC(), end: time.Unix(0, int64(le.Uint64(b[48:]))).UTC()}
	ok = f.size > 0 && f.size <= 2*maxRaw && f.raw > 0 && f.raw <= maxRaw && f.lines > 0 && f.lines <= f.raw &&
		f.minStep <= f.maxStep && f.maxStep <= math.MaxInt32 && f.first >= 0 && f.first <= math.MaxInt64-int64(f.lines)
	return f, ok
}

// scan reads the headers of a log of the given size. end is where the last whole frame ends: one that was torn
// off there is no error, since its lines are still in the tail. Anything else that is wrong is.
func scan(name string, r io.ReaderAt, size int64) (frames []frame, end int64, err error) {
	var next int64
	for b := make([]byte, headerLen); size-end >= headerLen; {
		if _, err := r.ReadAt(b, end); err != nil {
			return frames, end, err
		}
		f, ok := parseHeader(b)
		switch {
		case !ok:
			return frames, end, damaged(name, "there is no frame at byte %d", end)
		case f.first != next:
			return frames, end, damaged(name, "the frame at byte %d begins with line %d, not %d", end, f.first, next)
		}
		if f.offset = end + headerLen; size-f.offset < int64(f.size) {
			return frames, end, nil
		}
		frames, next, end = append(frames, f), f.next(), f.offset+int64(f.size)
	}
	return frames, end, nil
}

// unpack reads and decompresses the lines of f.
func (f frame) unpack(name string, r io.ReaderAt, dec *zstd.Decoder) ([]byte, error) {
	data := make([]byte, f.size)
	if _, err := r.ReadAt(data, f.offset); err != nil {
		return nil, err
	}
	raw, err := dec.DecodeAll(data, make([]byte, 0, f.raw))
	if err != nil {
		return nil, damaged(name, "the frame at byte %d: %v", f.offset, err)
	}
	if len(raw) != f.raw || bytes.Count(raw, []byte("\n")) != f.lines {
		return nil, damaged(name, "the frame at byte %d does not hold %d lines in %d bytes", f.offset, f.lines, f.raw)
	}
	return raw, nil
}

// find returns the index of the frame that holds a line, or len(frames).
func find(frames []frame, line int64) int {
	return sort.Search(len(frames), func(i int) bool { return frames[i].next() > line })
}

// span notes that a line of l's step and time is in f, whose lines are those before it.
func (f *frame) span(l tgr.LogLine) {
	if f.lines == 0 {
		f.minStep, f.maxStep, f.start, f.end = l.Step, l.Step, l.Time, l.Time
		return
	}
	f.minStep, f.maxStep = min(f.minStep, l.Step), max(f.maxStep, l.Step)
	if l.Time.Before(f.start) {
		f.start = l.Time
	}
	if l.Time.After(f.end) {
		f.end = l.Time
	}
}

// lineHead is what a line begins with where it is stored: its time and step. After it come the text, which holds no line
// feed, and a line feed.
type lineHead struct {
	nanos int64
	step  int
	text  []byte // nil: of no line
}

// set makes h that of l, and reports whether it was already.
func (h *lineHead) set(l tgr.LogLine) (same bool) {
	nanos := l.Time.UnixNano()
	if h.text != nil && nanos == h.nanos && l.Step == h.step {
		return true
	}
	b := strconv.AppendInt(h.text[:0], nanos, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(l.Step), 10)
	h.nanos, h.step, h.text = nanos, l.Step, append(b, ' ')
	return false
}

// cutLine takes the first line off b. ok is false where there is no whole line, or it is not one of ours.
func cutLine(b []byte) (l tgr.LogLine, rest []byte, ok bool) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return l, b, false
	}
	stamp, line, ok1 := bytes.Cut(line, []byte(" "))
	step, text, ok2 := bytes.Cut(line, []byte(" "))
	nanos, err1 := strconv.ParseInt(string(stamp), 10, 64)
	n, err2 := strconv.ParseInt(string(step), 10, 32)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || n < 0 {
		return l, b, false
	}
	return tgr.LogLine{Time: time.Unix(0, nanos).UTC(), Step: int(n), Text: string(text)}, rest, true
}

// The tail begins with the number of its first line: after a crash it may repeat lines that are in a frame.
const tailMark = "#"

func tailHead(first int64) []byte {
	return append(strconv.AppendInt([]byte(tailMark), first, 10), '\n')
}

// parseTail returns the whole lines of a tail that come after the line next, and how many they are. A tail that
// is torn anywhere ends there; one that begins later than next has lost what is between, and is damaged.
func parseTail(name string, b []byte, next int64) (raw []byte, lines int64, err error) {
	head, rest, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return nil, 0, nil // torn before its first line
	}
	digits, ok := bytes.CutPrefix(head, []byte(tailMark))
	first, err := strconv.ParseInt(string(digits), 10, 64)
	if !ok || err != nil || first < 0 || first > next {
		return nil, 0, damaged(name, "its tail begins with %.40q, where line %d is due", head, next)
	}
	for len(rest) > 0 {
		_, after, ok := cutLine(rest)
		if !ok {
			if bytes.IndexByte(rest, '\n') >= 0 {
				err = damaged(name, "line %d of its tail is none", first)
			}
			break
		}
		if first >= next {
			raw = append(raw, rest[:len(rest)-len(after)]...)
			lines++
		}
		first++
		rest = after
	}
	return raw, lines, err
}
