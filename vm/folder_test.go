package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A journal that need not outlive a power failure is read like any other.
func TestVolatile(t *testing.T) {
	j := Journal{Dir: t.TempDir(), Volatile: true}
	r, err := j.Open("one", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddPath(filepath.Join(t.TempDir(), "path")); err != nil {
		t.Fatal(err)
	}
	list, err := Journal{Dir: j.Dir}.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if diff := cmp.Diff(r.Entry(), list[0]); diff != "" {
		t.Errorf("-made +read:\n%s", diff)
	}
}

func TestFolders(t *testing.T) {
	dir := t.TempDir()
	mine, err := MakeFolder(dir, "x-")
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "100")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := FindProcess(sleep.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	recycled := p
	recycled.Start++
	named := func(p Process) string { return filepath.Join(dir, "x-"+maker(p)+"-1") }
	for _, name := range []string{named(p), named(recycled), filepath.Join(dir, "x-1"), filepath.Join(dir, "x-a-b-c-d"), filepath.Join(dir, "y-"+maker(recycled)+"-1")} {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dead := func() []string {
		t.Helper()
		list, err := DeadFolders(dir, "x-")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if diff := cmp.Diff([]string{named(recycled)}, dead()); diff != "" {
		t.Errorf("while all live: -want +got:\n%s", diff)
	}
	sleep.Process.Kill()
	sleep.Wait()
	if got := dead(); len(got) != 2 {
		t.Errorf("when one is dead: %v", got)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
}
