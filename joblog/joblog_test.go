package joblog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/joblog"
)

var start = time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC)

func open(t testing.TB, dir string, limits joblog.Limits) *joblog.Store {
	t.Helper()
	s, err := joblog.Open(joblog.Config{Dir: dir, Limits: limits, Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func create(t testing.TB, s *joblog.Store, job tgr.JobID, try int) *joblog.Writer {
	t.Helper()
	w, err := s.Create(job, try)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// numbered makes lines n to m (without m): each tells its number, and belongs to step n/1000.
func numbered(n, m int) []tgr.LogLine {
	var out []tgr.LogLine
	for i := n; i < m; i++ {
		out = append(out, tgr.LogLine{Time: start.Add(time.Duration(i) * time.Millisecond), Step: i / 1000, Text: fmt.Sprintf("line %d: %s", i, strings.Repeat("abcdefgh ", i%20))})
	}
	return out
}

func appendAll(t testing.TB, w *joblog.Writer, lines ...tgr.LogLine) {
	t.Helper()
	if err := w.Append(lines...); err != nil {
		t.Fatal(err)
	}
}

// collect reads a sequence to its end.
func collect(seq iter.Seq2[joblog.Line, error]) (lines []tgr.LogLine, first int64, err error) {
	first = -1
	for l, e := range seq {
		if e != nil {
			err = e
			continue
		}
		if first < 0 {
			first = l.Number
		}
		lines = append(lines, l.LogLine)
	}
	return lines, first, err
}

func same(t *testing.T, what string, want, got []tgr.LogLine) {
	t.Helper()
	if len(want) == 0 && len(got) == 0 {
		return
	}
	if len(want) != len(got) {
		t.Fatalf("%s: %d lines; want %d", what, len(got), len(want))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func TestReadWhileWrittenAndAfter(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s := open(t, dir, joblog.Limits{})
	w := create(t, s, 4711, 1)
	all := numbered(0, 20_000) // some six frames and a rest
	check := func(s *joblog.Store, what string) {
		t.Helper()
		got, _, err := collect(s.Read(ctx, 4711, joblog.Range{}))
		if err != nil {
			t.Fatal(err)
		}
		same(t, what, all, got)
		for _, from := range []int{0, 1, 2999, 12_345, len(all) - 1} {
			got, first, err := collect(s.Read(ctx, 4711, joblog.Range{From: int64(from), Limit: 10}))
			if err != nil || first != int64(from) {
				t.Fatalf("%s: from %d: first %d, %v", what, from, first, err)
			}
			same(t, what+", from "+strconv.Itoa(from), all[from:min(from+10, len(all))], got)
		}
		got, first, err := collect(s.Read(ctx, 4711, joblog.Range{Step: 7}))
		if err != nil || first != 7000 {
			t.Fatalf("%s: step 7 begins with %d, %v", what, first, err)
		}
		same(t, what+", step 7", all[7000:8000], got)
		got, _, err = collect(s.Read(ctx, 4711, joblog.Range{From: 7990, Step: 7, Limit: 100}))
		if err != nil {
			t.Fatal(err)
		}
		same(t, what+", end of step 7", all[7990:8000], got)
		if got, _, err := collect(s.Read(ctx, 4711, joblog.Range{From: 1 << 40})); len(got) > 0 || err != nil {
			t.Fatalf("%s: beyond the end: %v, %v", what, got, err)
		}
		tail, err := s.Tail(ctx, 4711, 3)
		if err != nil || len(tail) != 3 || tail[0].Number != int64(len(all)-3) || tail[2].Text != all[len(all)-1].Text {
			t.Fatalf("%s: Tail = %v, %v", what, tail, err)
		}
	}
	for i := 0; i < len(all); i += 1000 {
		appendAll(t, w, all[i:i+1000]...)
	}
	check(s, "live")
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	check(s, "closed")
	check(open(t, dir, joblog.Limits{}), "by another store")
	if err := w.Append(tgr.LogLine{}); tgr.CodeOf(err) != tgr.Conflict {
		t.Errorf("Append to a closed log = %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "4", "4711"))
	if err != nil || len(entries) != 1 {
		t.Errorf("a closed log is %v, %v; want one file", entries, err)
	}
}

// The file is what the zstd tool reads.
func TestZstdReadsIt(t *testing.T) {
	tool, err := exec.LookPath("zstd")
	if err != nil {
		t.Skip("zstd is not installed")
	}
	dir := t.TempDir()
	s := open(t, dir, joblog.Limits{})
	w := create(t, s, 1, 1)
	appendAll(t, w, numbered(0, 5000)...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "-dc", filepath.Join(dir, "0", "1", "1.zst")).Output()
	if n := strings.Count(string(out), "\n"); err != nil || n != 5000 {
		t.Fatalf("zstd -dc: %d lines, %v; want 5000", n, err)
	}
}

func TestLinesAsTheyCome(t *testing.T) {
	s := open(t, t.TempDir(), joblog.Limits{Line: 10})
	w := create(t, s, 1, 1)
	appendAll(t, w,
		tgr.LogLine{Step: -3, Text: "a\nb\r\n\nc"}, tgr.LogLine{Step: 1, Text: ""}, tgr.LogLine{Step: 1, Text: "0123456789abc"},
		tgr.LogLine{Step: 1, Text: "12345678ééé"}, tgr.LogLine{Step: 1, Text: strings.Repeat("\x80", 12)}, tgr.LogLine{Step: 1, Text: "\x00 1 2"}, tgr.LogLine{Step: 2, Text: "end\n"})
	var got []string
	for l, err := range s.Read(context.Background(), 1, joblog.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		if !l.Time.Equal(start) {
			t.Errorf("line %d has the time %v", l.Number, l.Time)
		}
		got = append(got, fmt.Sprintf("%d %q", l.Step, l.Text))
	}
	want := []string{`0 "a"`, `0 "b"`, `0 ""`, `0 "c"`, `1 ""`, `1 "0123456789"`, `1 "abc"`, `1 "12345678é"`, `1 "éé"`,
		`1 "\x80\x80\x80\x80\x80\x80\x80"`, `1 "\x80\x80\x80\x80\x80"`, `1 "\x00 1 2"`, `2 "end"`}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestLimits(t *testing.T) {
	texts := func(s *joblog.Store) (out []string) {
		for l, err := range s.Read(context.Background(), 1, joblog.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%d %s", l.Step, l.Text))
		}
		return out
	}
	for name, tc := range map[string]struct {
		limits joblog.Limits
		want   []string
	}{
		"step": {joblog.Limits{Step: 20, Ring: 10}, []string{
			"1 s1 0", "1 s1 1", "1 s1 2", "1 s1 3", "1 [tgr] the log of this step is truncated here: it is longer than 20 bytes",
			"1 [tgr] 4 lines were left out here; the last ones follow", "1 s1 8", "1 s1 9",
			"2 s2 0", "2 s2 1", "2 s2 2", "2 s2 3", "2 [tgr] the log of this step is truncated here: it is longer than 20 bytes",
			"2 [tgr] 4 lines were left out here; the last ones follow", "2 s2 8", "2 s2 9"}},
		"job": {joblog.Limits{Job: 55, Ring: 15}, []string{
			"1 s1 0", "1 s1 1", "1 s1 2", "1 s1 3", "1 s1 4", "1 s1 5", "1 s1 6", "1 s1 7", "1 s1 8", "1 s1 9",
			"2 s2 0", "2 [tgr] the log of this job is truncated here: it is longer than 55 bytes",
			"2 [tgr] 6 lines were left out here; the last ones follow", "2 s2 7", "2 s2 8", "2 s2 9"}},
	} {
		s := open(t, t.TempDir(), tc.limits)
		w := create(t, s, 1, 1)
		for step := 1; step <= 2; step++ {
			for i := range 10 {
				appendAll(t, w, tgr.LogLine{Step: step, Text: fmt.Sprintf("s%d %d", step, i)})
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tc.want, texts(s)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// Every follower, however slow or late, sees every line once and in order.
func TestFollow(t *testing.T) {
	s := open(t, t.TempDir(), joblog.Limits{})
	w := create(t, s, 9, 1)
	all := numbered(0, 30_000)
	var wg sync.WaitGroup
	follow := func(from, pause int) {
		wg.Go(func() {
			next := int64(from)
			for l, err := range s.Follow(context.Background(), 9, next) {
				if err != nil || l.Number != next || l.Text != all[next].Text {
					t.Errorf("follower from %d: line %d %q, %v; want line %d", from, l.Number, l.Text, err, next)
					return
				}
				if next++; pause > 0 && next%int64(pause) == 0 {
					time.Sleep(time.Millisecond) // slow: that is what is tested, nothing waits for it
				}
			}
			if next != int64(len(all)) {
				t.Errorf("follower from %d saw lines up to %d of %d", from, next, len(all))
			}
		})
	}
	for i := range 8 {
		follow(i*100, 0)
	}
	follow(0, 1000)
	for i := 0; i < len(all); i += 50 {
		appendAll(t, w, all[i:i+50]...)
		if i == len(all)/2 {
			follow(0, 0)
			follow(i+500, 0)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	follow(29_000, 0) // after the end
	wg.Wait()
}

func TestFollowEndsWithContextAndConsumer(t *testing.T) {
	s := open(t, t.TempDir(), joblog.Limits{})
	w := create(t, s, 9, 1)
	appendAll(t, w, tgr.LogLine{Text: "one"}, tgr.LogLine{Text: "two"})
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var got []string
	for l, err := range s.Follow(ctx, 9, 0) {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		if got = append(got, l.Text); l.Text == "two" {
			cancel(why)
		}
	}
	if d := cmp.Diff([]string{"one", "two", "why"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for range s.Follow(context.Background(), 9, 0) {
		break
	}
	for _, err := range s.Follow(context.Background(), 10, 0) {
		if tgr.CodeOf(err) != tgr.NotFound {
			t.Errorf("a job without a log: %v", err)
		}
	}
}

func TestTries(t *testing.T) {
	s := open(t, t.TempDir(), joblog.Limits{})
	for try := 1; try <= 11; try++ {
		w := create(t, s, 5, try)
		if _, err := s.Create(5, try+1); tgr.CodeOf(err) != tgr.Conflict {
			t.Fatalf("a second writer: %v", err)
		}
		if err := s.Remove(5); tgr.CodeOf(err) != tgr.Conflict {
			t.Fatalf("Remove while it is written: %v", err)
		}
		appendAll(t, w, tgr.LogLine{Text: fmt.Sprint("try ", try)})
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for try, want := range map[int]string{0: "try 11", 2: "try 2", 10: "try 10"} {
		if got, _, err := collect(s.Read(context.Background(), 5, joblog.Range{Try: try})); err != nil || len(got) != 1 || got[0].Text != want {
			t.Errorf("try %d: %v, %v; want %q", try, got, err, want)
		}
	}
	if err := errors.Join(s.Remove(5), s.Remove(5)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tail(context.Background(), 5, 1); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("after Remove: %v", err)
	}
	for _, bad := range [][2]int{{0, 1}, {1, 0}, {-1, -1}} {
		if _, err := s.Create(tgr.JobID(bad[0]), bad[1]); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("Create(%v) = %v", bad, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(6, 1); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("Create in a closed store = %v", err)
	}
	if _, err := joblog.Open(joblog.Config{}); tgr.CodeOf(err) != tgr.Invalid {
		t.Errorf("Open without a folder = %v", err)
	}
}

// A killed process leaves its flushed lines readable, and the log can be continued.
func TestKilled(t *testing.T) {
	ctx := context.Background()
	if dir := os.Getenv("JOBLOG_TEST_DIR"); dir != "" {
		s, err := joblog.Open(joblog.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		w := create(t, s, 3, 1)
		appendAll(t, w, numbered(0, 10_000)...)
		select {} // until it is killed
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "JOBLOG_TEST_DIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, joblog.Limits{})
	want := numbered(0, 10_000)
	deadline := time.Now().Add(time.Minute)
	for { // another process's log: there is nothing to wait on but the file
		if got, _, err := collect(s.Read(ctx, 3, joblog.Range{})); err == nil && len(got) == len(want) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the last lines were not flushed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	got, _, err := collect(s.Read(ctx, 3, joblog.Range{}))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "after the kill", want, got)
	w := create(t, s, 3, 1)
	appendAll(t, w, numbered(10_000, 10_010)...)
	got, _, err = collect(s.Read(ctx, 3, joblog.Range{}))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "continued", numbered(0, 10_010), got)
}

// Whatever part of the end of a log is missing, what is before it is read, and a writer goes on from there.
func TestTorn(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s := open(t, dir, joblog.Limits{})
	w := create(t, s, 1, 1)
	all := numbered(0, 6000)
	appendAll(t, w, all...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "0", "1", "1.zst")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole); cut >= 0; cut -= 997 {
		if err := os.WriteFile(file, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := collect(s.Read(ctx, 1, joblog.Range{}))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		same(t, "cut", all[:len(got)], got)
		w := create(t, s, 1, 1)
		appendAll(t, w, tgr.LogLine{Time: start, Text: "on"})
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		tail, err := s.Tail(ctx, 1, 1)
		if err != nil || tail[0].Text != "on" || tail[0].Number != int64(len(got)) {
			t.Fatalf("cut at %d, continued: %v, %v", cut, tail, err)
		}
	}
	for _, at := range []int{0, 30, 80, len(whole) / 2} { // a flipped bit is told, after what is whole
		bad := append([]byte(nil), whole...)
		bad[at] ^= 1
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := collect(s.Read(ctx, 1, joblog.Range{}))
		if tgr.CodeOf(err) != tgr.Internal {
			t.Errorf("a flipped bit at %d: %d lines, %v", at, len(got), err)
		}
		same(t, "before the damage", all[:len(got)], got)
	}
}

func BenchmarkAppend(b *testing.B) {
	line := tgr.LogLine{Time: start, Step: 3, Text: "2026-05-04 npm info run something@1.2.3 postinstall node_modules/something { code: 0, signal: null } ok"}
	batch := make([]tgr.LogLine, 100)
	for i := range batch {
		batch[i] = line
		batch[i].Text = fmt.Sprintf("%s %d", line.Text, i*7919)
	}
	size := 0
	for _, l := range batch {
		size += len(l.Text) + 1
	}
	s, err := joblog.Open(joblog.Config{Dir: b.TempDir(), Limits: joblog.Limits{Step: 1 << 40, Job: 1 << 40}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	w := create(b, s, 1, 1)
	b.SetBytes(int64(size))
	for b.Loop() {
		appendAll(b, w, batch...)
	}
}

// TestFlush is what a server relies on that may be killed: what was flushed is there for the next one, which counts the
// lines of steps and goes on behind them.
func TestFlush(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, joblog.Limits{})
	w := create(t, s, 1, 1)
	appendAll(t, w, tgr.LogLine{Text: "the server's own"}, tgr.LogLine{Step: 1, Text: "one"}, tgr.LogLine{Step: 2, Text: "two\nthree"})
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	appendAll(t, w, tgr.LogLine{Step: 2, Text: "lost"}) // another process sees what is in the files
	next := create(t, open(t, copied(t, dir), joblog.Limits{}), 1, 1)
	n, err := next.Steps()
	if err != nil || n != 3 {
		t.Errorf("%d lines of steps, %v; want 3", n, err)
	}
	appendAll(t, next, tgr.LogLine{Step: 2, Text: "four"})
	if n, err := next.Steps(); err != nil || n != 4 {
		t.Errorf("%d lines of steps, %v; want 4", n, err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.Flush(); err != nil {
		t.Errorf("flush of a log that is closed: %v", err)
	}
}

// copied is a copy of a folder of logs, as a server finds it whose predecessor was killed.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Whatever the umask, nobody else reads a log. The test does not run beside others, whose umask it changes.
func TestFileModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "logs")
	s := open(t, dir, joblog.Limits{})
	appendAll(t, create(t, s, 1, 1), numbered(0, 5000)...)
	w := create(t, s, 2, 1)
	appendAll(t, w, numbered(0, 5)...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(dir, func(path string, f fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if !f.IsDir() {
			n++
		}
		return nil
	})
	if err != nil || n < 2 {
		t.Errorf("%d files of logs: %v", n, err)
	}
}
