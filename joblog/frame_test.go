package joblog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
	w.mu.Lock()
	errors.Join(w.file.Close(), w.tail.Close()) // every later write fails
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
	var last error
	for _, err := range s.Follow(context.Background(), 1, 0) {
		last = err
	}
	if last != nil {
		t.Logf("followed from the file: %v", last)
	}
}

// FuzzLog reads files that may be damaged in any way.
func FuzzLog(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		f.Fatal(err)
	}
	w, err := s.Create(1, 1)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		if err := w.Append(tgr.LogLine{Time: time.Unix(int64(i), 0), Step: i, Text: strings.Repeat("a", i)}); err != nil {
			f.Fatal(err)
		}
		w.mu.Lock()
		w.fail(w.seal())
		w.mu.Unlock()
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(s.folder(1), "1.zst"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, []byte("#3\n1 2 text\n"))
	f.Add(whole[:len(whole)-5], []byte("#2\n1 2 text\n1 2 te"))
	f.Add(whole[:90], []byte("#99999999999999999999\n"))
	f.Add([]byte{}, []byte("#0\n1 1 \n"))
	f.Fuzz(func(t *testing.T, frames, tail []byte) {
		if err := os.MkdirAll(s.folder(2), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"1.zst": frames, "1.tail": tail} {
			if err := os.WriteFile(filepath.Join(s.folder(2), name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		read := func() (n int64) {
			for l, err := range s.Read(context.Background(), 2, Range{}) {
				if err != nil {
					break
				}
				if l.Number != n || l.Step < 0 || strings.Contains(l.Text, "\n") {
					t.Fatalf("line %d is %+v", n, l)
				}
				n++
			}
			return n
		}
		read()
		w, err := s.Create(2, 1)
		if err != nil {
			t.Fatalf("a damaged log cannot be continued: %v", err)
		}
		if err := w.Append(tgr.LogLine{Text: "on"}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		read()
	})
}
