package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Statuses of a program that was not started, as shells have them.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// startError is why a program was not started.
type startError struct {
	status  int
	message string
}

func (e *startError) Error() string { return e.message }

// command is what a request asks to run, found and ready for the kernel.
type command struct {
	path string
	args []string
	attr syscall.ProcAttr
}

func commandOf(req *request) (*command, error) {
	if len(req.Args) == 0 || len(req.Args[0]) == 0 {
		return nil, &startError{statusNotFound, "no program was named"}
	}
	c := &command{attr: syscall.ProcAttr{Dir: string(req.Dir), Env: []string{}, Sys: &syscall.SysProcAttr{Setsid: true}}}
	if c.attr.Dir == "" {
		c.attr.Dir = "/"
	}
	for _, a := range req.Args {
		c.args = append(c.args, string(a))
	}
	searchPath := ""
	for _, e := range req.Env {
		c.attr.Env = append(c.attr.Env, string(e))
		if v, ok := strings.CutPrefix(string(e), "PATH="); ok {
			searchPath = v
		}
	}
	var err error
	if c.attr.Sys.Credential, err = credential(req.User); err != nil {
		return nil, &startError{statusNotExecutable, err.Error()}
	}
	if mode, err := statMode(c.attr.Dir); err != nil {
		return nil, &startError{statusNotExecutable, fmt.Sprintf("working directory %s: %v", c.attr.Dir, err)}
	} else if mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, &startError{statusNotExecutable, fmt.Sprintf("working directory %s: not a directory", c.attr.Dir)}
	}
	c.path, err = lookup(c.args[0], c.attr.Dir, searchPath)
	return c, err
}

// lookup finds a program as execvp does: a name with a slash is a path from dir, any other is searched for.
func lookup(name, dir, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name, dir)
	}
	var denied error
	for _, d := range filepath.SplitList(path) {
		if d == "" {
			d = "."
		}
		p := filepath.Join(d, name)
		if !filepath.IsAbs(p) {
			p = "./" + p
		}
		err := executable(p, dir)
		if err == nil {
			return p, nil
		}
		if e, ok := errors.AsType[*startError](err); ok && e.status == statusNotExecutable && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &startError{statusNotFound, name + ": command not found"}
}

// executable says why the file at path, seen from dir, cannot be executed; the kernel has the last word.
func executable(path, dir string) error {
	full := path
	if !filepath.IsAbs(full) {
		full = dir + "/" + path
	}
	mode, err := statMode(full)
	switch {
	case err == unix.ENOENT || err == unix.ENOTDIR:
		return &startError{statusNotFound, path + ": no such file or directory"}
	case err != nil:
		return &startError{statusNotExecutable, path + ": " + reason(err)}
	case mode&unix.S_IFMT == unix.S_IFDIR:
		return &startError{statusNotExecutable, path + ": is a directory"}
	case mode&0o111 == 0:
		return &startError{statusNotExecutable, path + ": permission denied"}
	}
	return nil
}

// statMode asks the kernel for a file's type and permissions; the error is its own word. What package os makes of them costs an
// emulated machine's first process more than the answer.
func statMode(path string) (uint32, error) {
	for {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != unix.EINTR {
			return st.Mode, err
		}
	}
}

// launchError says what the kernel's refusal of a program means.
func launchError(name string, err error) *startError {
	if errors.Is(err, fs.ErrNotExist) { // the file is there: its interpreter is not
		return &startError{statusNotFound, name + ": bad interpreter: no such file or directory"}
	}
	return &startError{statusNotExecutable, name + ": " + reason(err)}
}

// reason is the kernel's word alone, without operation and path.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

// credential finds a user by name, uid or uid:gid. A uid without an account has the group of its number.
func credential(name string) (*syscall.Credential, error) {
	if name == "" {
		return nil, nil
	}
	uid, gid, pair := strings.Cut(name, ":")
	u, err := strconv.ParseUint(uid, 10, 32)
	if pair {
		g, gerr := strconv.ParseUint(gid, 10, 32)
		if err != nil || gerr != nil {
			return nil, fmt.Errorf("user %q: want a name, uid or uid:gid", name)
		}
		return &syscall.Credential{Uid: uint32(u), Gid: uint32(g), NoSetGroups: os.Getuid() != 0}, nil
	}
	var account *user.User
	if err == nil {
		if account, err = user.LookupId(name); err != nil {
			return &syscall.Credential{Uid: uint32(u), Gid: uint32(u), NoSetGroups: os.Getuid() != 0}, nil
		}
	} else if account, err = user.Lookup(name); err != nil {
		return nil, fmt.Errorf("user %q: no such user", name)
	}
	c := &syscall.Credential{NoSetGroups: os.Getuid() != 0}
	u, err = strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %q: uid %q", name, account.Uid)
	}
	g, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %q: gid %q", name, account.Gid)
	}
	c.Uid, c.Gid = uint32(u), uint32(g)
	if groups, err := account.GroupIds(); err == nil {
		for _, id := range groups {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				c.Groups = append(c.Groups, uint32(n))
			}
		}
	}
	return c, nil
}

// sessionOf returns the processes of a session that live.
func sessionOf(sid int) []int {
	return processesThat(func(s procStat) bool { return s.session == sid && s.state != 'Z' && s.state != 'X' })
}

// childrenOf returns the children of a process, dead ones that were not waited for among them.
func childrenOf(pid int) []int {
	return processesThat(func(s procStat) bool { return s.parent == pid })
}

func processesThat(match func(procStat) bool) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		if s, ok := parseStat(string(b)); ok && match(s) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// procStat is what we want of /proc/pid/stat.
type procStat struct {
	state           byte
	parent, session int
}

// parseStat reads /proc/pid/stat, where the program's name, in parentheses, may hold anything.
func parseStat(text string) (s procStat, ok bool) {
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 4 || len(f[0]) != 1 || f[0][0] < 'A' || f[0][0] > 'z' {
		return procStat{}, false
	}
	parent, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	return procStat{f[0][0], parent, session}, err1 == nil && err2 == nil
}
