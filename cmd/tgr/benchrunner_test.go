package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/joblog"
)

// TestFlood runs a small flood, with secrets, and finds every line again.
func TestFlood(t *testing.T) {
	if got := len(fmt.Sprintf(floodLine, 0)); got != floodBytes {
		t.Fatalf("a line has %d bytes, and floodBytes is %d", got, floodBytes)
	}
	file := filepath.Join(t.TempDir(), "lines")
	if err := writeFlood(file, 1000); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != 1000*floodBytes {
		t.Fatalf("the file: %v, %v", info, err)
	}
	t.Setenv("TGR_AGENT", buildAgent(t))
	r, err := flood(t.Context(), file, 1000, 3, 20)
	if err != nil || r.Rate <= 0 || r.Peak <= 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestCheckFlood finds what is missing, or out of its order.
func TestCheckFlood(t *testing.T) {
	line := func(i int) string { return strings.TrimSuffix(fmt.Sprintf(floodLine, i), "\n") }
	for name, c := range map[string]struct {
		lines []string
		ok    bool
	}{
		"whole":     {[]string{"a header", line(0), line(1), line(2), line(0), line(1), line(2)}, true},
		"missing":   {[]string{line(0), line(2), line(0), line(1), line(2)}, false},
		"swapped":   {[]string{line(0), line(2), line(1), line(0), line(1), line(2)}, false},
		"cut off":   {[]string{line(0), line(1), line(2), line(0), line(1)}, false},
		"once only": {[]string{line(0), line(1), line(2)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			logs, err := joblog.Open(joblog.Config{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer logs.Close()
			w, err := logs.Create(1, 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range c.lines {
				if err := w.Append(tgr.LogLine{Step: 1, Text: text}); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if err := checkFlood(t.Context(), logs, 3, 2); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
