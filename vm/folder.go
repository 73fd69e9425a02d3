package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MakeFolder makes a folder below dir whose name begins with prefix and says which process made it, so that
// DeadFolders finds it when that process is gone.
func MakeFolder(dir, prefix string) (string, error) {
	p, err := FindProcess(os.Getpid())
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(dir, prefix+maker(p)+"-")
}

// maker names a process in a folder's name: pid, start time and the beginning of the boot's id.
func maker(p Process) string {
	return fmt.Sprintf("%d-%d-%.8s", p.PID, p.Start, p.Boot)
}

// DeadFolders lists the folders below dir that MakeFolder has made with this prefix, for this user, in processes that
// are gone.
func DeadFolders(dir, prefix string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var dead []string
	for _, d := range list {
		if !d.IsDir() || !madeByTheDead(d.Name(), prefix) {
			continue
		}
		// In a folder that all may write, a name proves nothing.
		var st unix.Stat_t
		path := filepath.Join(dir, d.Name())
		if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid() {
			dead = append(dead, path)
		}
	}
	return dead, nil
}

// madeByTheDead reports whether a name is one of MakeFolder's, and its process is gone.
func madeByTheDead(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	f := strings.Split(rest, "-")
	if !ok || len(f) != 4 {
		return false
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || pid <= 0 {
		return false
	}
	p, err := FindProcess(pid)
	return err != nil || maker(p) != strings.Join(f[:3], "-") || !p.Alive()
}
