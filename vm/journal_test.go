package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// asServer, in the environment, makes the test binary a server that opens machines and is killed.
const asServer = "TGR_TEST_SERVER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asServer); dir != "" {
		os.Exit(crashingServer(dir))
	}
	os.Exit(m.Run())
}

// crashingServer opens three machines, and dies without freeing them: "full" has a process with a child and a
// path, "marked" a process that was not written down, "empty" nothing.
func crashingServer(dir string) int {
	j := Journal{Dir: dir}
	for _, id := range []string{"full", "marked", "empty"} {
		r, err := j.Open(id, "test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if id == "empty" {
			continue
		}
		cmd := exec.Command("sh", "-c", "sleep 1000 & sleep 1000")
		cmd.Env = append(os.Environ(), r.Env(), asServer+"=")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if id == "full" {
			path := filepath.Join(dir, "..", "outside")
			if err := errors.Join(r.AddProcess(cmd.Process.Pid), r.AddPath(path), os.WriteFile(path, nil, 0o600)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	return 1
}

// crash runs a crashingServer to its end.
func crash(t *testing.T, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asServer+"="+dir)
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
		t.Fatalf("the server did not die as planned: %v\n%s", err, out)
	}
}

// sleeper starts a process that is killed when the test ends.
func sleeper(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	return cmd
}

func TestRecord(t *testing.T) {
	j := Journal{Dir: filepath.Join(t.TempDir(), "made")}
	r, err := j.Open("one", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Open("one", "test"); !errors.Is(err, ErrMachineExists) {
		t.Errorf("open again: %v, want ErrMachineExists", err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := r.AddPath(outside); err != nil {
		t.Fatal(err)
	}
	// As unfriendly a tree as a module cache.
	if err := os.MkdirAll(filepath.Join(outside, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(outside, "a"), 0o555)
	cmd := sleeper(t, "sleep 1000 & sleep 1000")
	if err := r.AddProcess(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	list, err := j.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("list = %v, %v", list, err)
	}
	if diff := cmp.Diff(r.Entry(), list[0]); diff != "" {
		t.Errorf("the record differs from what was written (-want +got):\n%s", diff)
	}
	if reaped, err := j.Reap(t.Context(), nil); err != nil || len(reaped) != 0 {
		t.Errorf("reaped %v, %v of a server that is alive", reaped, err)
	}
	for range 2 {
		if err := r.Free(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if list[0].Processes[0].Alive() {
		t.Error("the process is alive")
	}
	for _, p := range []string{outside, r.Dir()} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
}

// TestRename gives a machine another id: everybody finds it under that, with all that it has.
func TestRename(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	r, err := j.Open("spare", "test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := j.Open("other", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddProcess(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := r.Rename("other"); !errors.Is(err, ErrMachineExists) {
		t.Errorf("an id that is in use: %v", err)
	}
	if err := r.Rename("a/b"); err == nil {
		t.Error("an id that is none was accepted")
	}
	if r.ID() != "spare" {
		t.Errorf("after being refused it is %q", r.ID())
	}
	if err := r.Rename("mine"); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(j.Dir, "mine"); r.ID() != "mine" || r.Dir() != want {
		t.Errorf("it is %q in %s, want mine in %s", r.ID(), r.Dir(), want)
	}
	path := filepath.Join(t.TempDir(), "outside")
	if err := r.AddPath(path); err != nil {
		t.Fatal(err)
	}
	list, err := j.List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Entry{r.Entry(), other.Entry()}, list); diff != "" || list[0].Paths[0] != path || len(list[0].Processes) != 1 {
		t.Errorf("the journal (-want +got):\n%s", diff)
	}
	adopted, err := j.Adopt("mine")
	if err != nil || adopted.ID() != "mine" {
		t.Errorf("adopt: %+v, %v", adopted, err)
	}
	if _, err := j.Open("spare", "test"); err != nil {
		t.Errorf("the id that it had: %v", err)
	}
}

// TestRecall: what a provider has remembered of a machine it gets back, the last of it, and nobody else does.
func TestRecall(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	r, err := j.Open("one", "test")
	if err != nil {
		t.Fatal(err)
	}
	type known struct{ N int }
	var got known
	if err := r.Recall("test", &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before anything was remembered: %v", err)
	}
	for n := 1; n <= 2; n++ {
		if err := r.Remember(known{n}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Recall("test", &got); err != nil || got.N != 2 {
		t.Errorf("recalled %+v, %v", got, err)
	}
	if err := r.Recall("other", &got); err == nil || !strings.Contains(err.Error(), "a machine of test") {
		t.Errorf("to another provider: %v", err)
	}
	if err := os.WriteFile(filepath.Join(r.Dir(), recallFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Recall("test", &got); err == nil || !strings.Contains(err.Error(), recallFile) {
		t.Errorf("of a file that was cut off: %v", err)
	}
	if e, err := j.Entry("one"); err != nil || e.Provider != "test" {
		t.Errorf("entry: %+v, %v", e, err)
	}
	for _, id := range []string{"two", "../one"} {
		if e, err := j.Entry(id); err == nil {
			t.Errorf("entry %q: %+v", id, e)
		}
	}
}

func TestRecordRefuses(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	for _, id := range []string{"", ".", "..", "a/b", "a_b", "ä", strings.Repeat("x", 65)} {
		if _, err := j.Open(id, "test"); err == nil {
			t.Errorf("machine id %q was accepted", id)
		}
		if _, err := j.Adopt(id); err == nil {
			t.Errorf("machine id %q was adopted", id)
		}
	}
	r, err := j.Open("one", "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"", "relative", "/", "//", "/.."} {
		if err := r.AddPath(p); err == nil {
			t.Errorf("path %q was accepted", p)
		}
	}
	if err := r.AddProcess(1 << 30); err == nil {
		t.Error("a process that does not exist was accepted")
	}
}

func TestReap(t *testing.T) {
	base := t.TempDir()
	j := Journal{Dir: filepath.Join(base, "journal")}
	crash(t, j.Dir)
	entries, err := j.List()
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d machines, %v; want 3", len(entries), err)
	}
	var marked []Process
	for _, e := range entries {
		if e.ID != "marked" {
			continue
		}
		for end := time.Now().Add(30 * time.Second); len(marked) < 3; time.Sleep(time.Millisecond) { // it starts its children
			if marked = findMarked(e.Mark); time.Now().After(end) {
				t.Fatalf("%d processes that were not written down are found, want 3", len(marked))
			}
		}
	}
	if reaped, err := j.Reap(t.Context(), func(id string) bool { return true }); err != nil || len(reaped) != 0 {
		t.Errorf("reaped %v, %v although all were to be kept", reaped, err)
	}
	reaped, err := j.Reap(t.Context(), func(id string) bool { return id == "empty" })
	if err != nil {
		t.Fatal(err)
	}
	killed := map[string]int{}
	for _, r := range reaped {
		if r.Err != nil {
			t.Errorf("%s: %v", r.ID, r.Err)
		}
		killed[r.ID] = r.Killed
	}
	if diff := cmp.Diff(map[string]int{"full": 3, "marked": 3}, killed); diff != "" {
		t.Errorf("killed (-want +got):\n%s", diff)
	}
	for _, p := range marked {
		if p.Alive() {
			t.Errorf("process %d is alive", p.PID)
		}
	}
	if _, err := os.Lstat(filepath.Join(base, "outside")); !os.IsNotExist(err) {
		t.Errorf("the path outside is left: %v", err)
	}
	if left, _ := j.List(); len(left) != 1 || left[0].ID != "empty" {
		t.Errorf("left: %v", left)
	}
}

func TestAdopt(t *testing.T) {
	j := Journal{Dir: filepath.Join(t.TempDir(), "journal")}
	crash(t, j.Dir)
	r, err := j.Adopt("full")
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Entry().Processes; len(p) != 1 || !p[0].Alive() {
		t.Errorf("the adopted machine's processes: %v", p)
	}
	reaped, err := j.Reap(t.Context(), nil)
	if err != nil || slices.ContainsFunc(reaped, func(r Reaped) bool { return r.ID == "full" }) {
		t.Errorf("reaped %v, %v, and so the one that was adopted", reaped, err)
	}
	if err := r.Free(t.Context()); err != nil {
		t.Error(err)
	}

	other := sleeper(t, "sleep 1000")
	mine, err := j.Open("owned", "test")
	if err != nil {
		t.Fatal(err)
	}
	owner, err := FindProcess(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := appendLine(filepath.Join(mine.Dir(), journalFile), line{Owner: &owner}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Adopt("owned"); !errors.Is(err, ErrOwned) {
		t.Errorf("adopt from a server that is alive: %v, want ErrOwned", err)
	}
}

// A pid that was used again, or is of another boot, is nobody's.
func TestReapRecycled(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	bystander := sleeper(t, "sleep 1000")
	p, err := FindProcess(bystander.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for i, q := range []Process{{p.PID, p.Start + 1, p.Boot}, {p.PID, p.Start, "another"}} {
		r, err := j.Open(fmt.Sprintf("recycled-%d", i), "test")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(r.Dir(), journalFile)
		// The owner too has a pid that is now another's.
		if err := errors.Join(appendLine(file, line{Process: &q}, false), appendLine(file, line{Owner: &q}, false)); err != nil {
			t.Fatal(err)
		}
	}
	reaped, err := j.Reap(t.Context(), nil)
	if err != nil || len(reaped) != 2 {
		t.Errorf("reaped %v, %v; want both", reaped, err)
	}
	if !p.Alive() {
		t.Error("a bystander was killed")
	}
	if p.Kill(); (Process{p.PID, p.Start + 1, p.Boot}).Kill() {
		t.Error("killed a process that is another")
	}
}

func TestReapUnfinished(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	for _, name := range []string{".new-1", "torn", "fresh"} {
		if err := os.Mkdir(filepath.Join(j.Dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(j.Dir, "torn", journalFile), []byte(`{"id":"to`), 0o600)
	past := time.Now().Add(-2 * unfinishedAge)
	for _, name := range []string{".new-1", "torn"} {
		if err := os.Chtimes(filepath.Join(j.Dir, name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	// One whose maker is gone does not have to wait.
	gone, err := FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	gone.Start++
	if err := os.Mkdir(filepath.Join(j.Dir, unfinished+maker(gone)+"-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Reap(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	left, _ := os.ReadDir(j.Dir)
	if len(left) != 1 || left[0].Name() != "fresh" {
		t.Errorf("left: %v", left)
	}
	if list, err := (Journal{Dir: filepath.Join(j.Dir, "nonesuch")}).Reap(t.Context(), nil); err != nil || list != nil {
		t.Errorf("a journal that was never written: %v, %v", list, err)
	}
}

// A process that forks as fast as it is killed leaves nothing, nor does a stopped one.
func TestKillTrees(t *testing.T) {
	cmd := sleeper(t, "f() { while :; do sleep 0.01 & done; }; f & f & kill -STOP $$; wait")
	p, err := FindProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for len(mustTree(t, p)) < 3 {
		time.Sleep(time.Millisecond)
	}
	n, err := KillTrees(t.Context(), []Process{p})
	if err != nil || n < 3 {
		t.Errorf("killed %d, %v", n, err)
	}
	if p.Alive() {
		t.Error("the root is alive")
	}
	if n, err := KillTrees(t.Context(), []Process{p}); n != 0 || err != nil {
		t.Errorf("killed %d, %v of what is dead", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := KillTrees(ctx, nil); n != 0 || err != nil {
		t.Errorf("killed %d, %v of nothing", n, err)
	}
}

func mustTree(t *testing.T, p Process) []Process {
	t.Helper()
	_, below, err := trees([]Process{p})
	if err != nil {
		t.Fatal(err)
	}
	return below
}

func FuzzJournal(f *testing.F) {
	whole, err := json.Marshal(Entry{ID: "one", Owner: Process{PID: 1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(string(whole) + "\n{\"path\":\"/tmp/x\"}\n{\"process\":{\"pid\":7}}\n{\"owner\":{\"pi"))
	f.Add([]byte(string(whole) + "\n{\"path\":\"relative\"}{\"path\":\"/\"}"))
	f.Add([]byte(`{"id":"../x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !ValidID(e.ID) {
			t.Errorf("id %q", e.ID)
		}
		for _, p := range e.Paths {
			if !filepath.IsAbs(p) || filepath.Clean(p) == "/" {
				t.Errorf("path %q", p)
			}
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add("1 (a) b) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22")
	f.Add("1 (")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseStat(7, text); err == nil && s.pid != 7 {
			t.Errorf("%+v", s)
		}
	})
}

func TestCPUTime(t *testing.T) {
	before, err := CPUTime(os.Getpid())
	if err != nil || before <= 0 {
		t.Fatalf("we have run for %v, %v", before, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) { // works until the work shows
		if after, err := CPUTime(os.Getpid()); err != nil || after > before {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("no work shows")
}

func TestCPUTimeOfNobody(t *testing.T) {
	if _, err := CPUTime(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
