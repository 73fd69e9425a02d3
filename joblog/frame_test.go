package joblog

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

func TestParseTail(t *testing.T) {
	for name, tc := range map[string]struct {
		tail  string
		next  int64
		lines int64
		bad   bool
	}{
		"empty":              {"", 0, 0, false},
		"torn head":          {"#1", 0, 0, false},
		"all new":            {"#5\n1 2 a\n1 2 b\n", 5, 2, false},
		"some in a frame":    {"#5\n1 2 a\n1 2 b\n", 6, 1, false},
		"all in a frame":     {"#5\n1 2 a\n1 2 b\n", 9, 0, false},
		"torn line":          {"#5\n1 2 a\n1 2 b", 5, 1, false},
		"a hole before it":   {"#5\n1 2 a\n", 4, 0, true},
		"no head":            {"1 2 a\n", 0, 0, true},
		"a line that is one": {"#0\n1 2 a\nx\n1 2 b\n", 0, 1, true},
		"a negative step":    {"#0\n1 -2 a\n", 0, 0, true},
	} {
		_, lines, err := parseTail("1/1", []byte(tc.tail), tc.next)
		if lines != tc.lines || (err != nil) != tc.bad {
			t.Errorf("%s: %d lines, %v; want %d lines, an error: %v", name, lines, err, tc.lines, tc.bad)
		}
	}
}

func TestHeader(t *testing.T) {
	f := frame{size: 10, raw: 20, first: 7, lines: 3, minStep: 1, maxStep: 4, start: time.Unix(1, 2).UTC(), end: time.Unix(3, 4).UTC()}
	b := f.header()
	if got, ok := parseHeader(b); !ok || got != f {
		t.Fatalf("%+v, %v; want %+v", got, ok, f)
	}
	for i := range b {
		b[i] ^= 0x10
		if _, ok := parseHeader(b); ok {
			t.Errorf("a header with a flipped bit in byte %d is believed", i)
		}
		b[i] ^= 0x10
	}
}

// A log whose disk fails says so to its writer and to those who follow it, and keeps what came before.
func TestWriteFails(t *testing.T) {
	s, err := Open(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Create(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(tgr.LogLine{Text: "before"}); err != nil {
		t.Fatal(err)
	}
	saw := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		var last error
		for l, err := range s.Follow(context.Background(), 1, 0) {
			if last = err; err == nil && l.Number == 0 {
				close(began)
			}
		}
		saw <- last
	}()
	<-began
	w.mu.Lock()
	if err := errors.Join(w.file.Close(), w.tail.Close()); err != nil { // every later write fails
		t.Error(err)
	}
	w.mu.Unlock()
	if err := w.Append(tgr.LogLine{Text: strings.Repeat("x", chunk)}); tgr.CodeOf(err) != tgr.Unavailable {
		t.Fatalf("Append = %v; want unavailable", err)
	}
	if err := w.Append(tgr.LogLine{Text: "after"}); err == nil {
		t.Fatal("the log goes on after a failed write")
	}
	if err := w.Close(); err == nil {
		t.Fatal("Close hides the failure")
	}
	if err := <-saw; tgr.CodeOf(err) != tgr.Unavailable {
		t.Fatalf("a follower saw the end %v; want unavailable", err)
	}
}

// FuzzLog reads frames and a tail that may be damaged in any way.
func FuzzLog(f *testing.F) {
	s, err := Open(Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	var whole []byte
	var next int64
	for i := range 3 {
		l := tgr.LogLine{Time: time.Unix(int64(i), 0), Step: i, Text: strings.Repeat("a", i)}
		var h lineHead
		h.set(l)
		line := string(h.text) + l.Text + "\n"
		raw := []byte(line + line)
		data := s.enc.EncodeAll(raw, nil)
		fr := frame{size: len(data), raw: len(raw), first: next, lines: 2, minStep: i, maxStep: i, start: l.Time, end: l.Time}
		whole = append(append(whole, fr.header()...), data...)
		next = fr.next()
	}
	f.Add(whole, []byte("#6\n1 2 text\n"))
	f.Add(whole[:len(whole)-5], []byte("#4\n1 2 text\n1 2 te"))
	f.Add(whole[:90], []byte("#99999999999999999999\n"))
	f.Add([]byte{}, []byte("#0\n1 1 \n"))
	f.Fuzz(func(t *testing.T, b, tail []byte) {
		frames, end, err := scan("1/1", bytes.NewReader(b), int64(len(b)))
		if end > int64(len(b)) || err == nil && int64(len(b))-end > 2*maxRaw+headerLen {
			t.Fatalf("frames end at %d of %d bytes", end, len(b))
		}
		n := int64(0)
		count := func(l Line) error {
			if l.Number != n || l.Step < 0 || strings.Contains(l.Text, "\n") {
				t.Fatalf("line %d is %+v", n, l)
			}
			n++
			return nil
		}
		for _, fr := range frames {
			raw, err := fr.unpack("1/1", bytes.NewReader(b), s.dec)
			if err != nil {
				return
			}
			if len(raw) > maxRaw {
				t.Fatalf("a frame of %d bytes", len(raw))
			}
			if _, err := lines("1/1", raw, fr.first, 0, 0, count); err != nil {
				return
			}
		}
		raw, more, _ := parseTail("1/1", tail, n)
		was := n
		if _, err := lines("1/1", raw, n, 0, 0, count); err != nil || n-was != more {
			t.Fatalf("the tail's %d lines: %d, %v", more, n-was, err)
		}
	})
}
