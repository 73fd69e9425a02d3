package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
