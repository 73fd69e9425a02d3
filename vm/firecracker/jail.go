package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// jail is the folder that a process sees as its root, or without the jailer works in.
type jail struct {
	id   string // the process's; one machine may have several, one after the other
	root string
	dir  *os.File // root; sockets are reached through it whatever its path's length
	uid  int      // who the process is; -1: who we are
}

// newJail makes the n-th jail of a machine. All of it is in the machine's own folder, and goes with that.
func (p *Provider) newJail(rec *vm.Record, id string, n, uid int) (*jail, error) {
	if n > 0 {
		id = fmt.Sprintf("%.58s-%d", id, n) // 64 bytes are allowed
	}
	j := &jail{id: id, uid: uid, root: filepath.Join(rec.Dir(), "jail", filepath.Base(p.binary), id, "root")}
	// Only root has to get through the folders above: the jailer enters before it becomes somebody else.
	if err := os.MkdirAll(j.root, 0o700); err != nil {
		return nil, err
	}
	var err error
	j.dir, err = os.Open(j.root)
	return j, err
}

func (j *jail) close() { j.dir.Close() }

func (j *jail) path(name string) string { return filepath.Join(j.root, name) }

// link makes a file of the host appear in the jail, to be read. Where it is on another file system it is copied, which
// takes as long as its size.
func (j *jail) link(ctx context.Context, path, name string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if j.uid >= 0 && info.Mode()&0o004 == 0 {
		return fmt.Errorf("%s is not readable for the users that machines run as: chmod o+r %s", path, path)
	}
	err = os.Link(path, j.path(name))
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err := vm.CopySparse(ctx, j.path(name), path); err != nil {
		return err
	}
	return os.Chmod(j.path(name), 0o444)
}

// empty makes a file for the process to write.
func (j *jail) empty(name string) error {
	if err := os.WriteFile(j.path(name), nil, 0o600); err != nil {
		return err
	}
	return j.own(name)
}

// own gives a file to the process.
func (j *jail) own(name string) error {
	if j.uid < 0 {
		return nil
	}
	return os.Chown(j.path(name), j.uid, j.uid)
}

func (j *jail) dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", j.dir.Fd(), socket))
}

// argv is the command of a process: a pure function of its arguments, pinned by a test.
func (p *Provider) argv(j *jail, s vm.Spec, netns string) []string {
	own := []string{"--api-sock", apiSocket}
	if p.jailer == "" {
		return append([]string{p.binary, "--id", j.id}, own...)
	}
	uid := strconv.Itoa(j.uid)
	v := []string{
		p.jailer, "--id", j.id, "--exec-file", p.binary, "--uid", uid, "--gid", uid,
		"--chroot-base-dir", filepath.Dir(filepath.Dir(filepath.Dir(j.root))),
		"--resource-limit", "no-file=2048", "--cgroup-version", "2",
	}
	if netns != "" {
		v = append(v, "--netns", netns)
	}
	if p.cfg.Parent != "" {
		// More than the guest's memory: the process has some of its own, and pays for the pages of the disks that it reads.
		const overhead = 128 << 20
		v = append(v, "--parent-cgroup", p.cfg.Parent,
			"--cgroup", fmt.Sprintf("memory.max=%d", s.Memory+overhead),
			"--cgroup", fmt.Sprintf("cpu.max=%d 100000", s.VCPUs*100000),
			"--cgroup", fmt.Sprintf("pids.max=%d", s.VCPUs+64))
	}
	return append(append(v, "--"), own...)
}

// command is the process, in a session of its own: it outlives the server's process group.
func (p *Provider) command(j *jail, s vm.Spec, rec *vm.Record, netns string) *exec.Cmd {
	v := p.argv(j, s, netns)
	cmd := exec.Command(v[0], v[1:]...)
	cmd.Dir = j.root
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", rec.Env()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// reserveUID finds a user that no other machine of this journal has. A file per user says who has it: a hard link
// to one in the machine's own folder, so that it has lost its meaning when that folder is gone, however it went.
func (p *Provider) reserveUID(rec *vm.Record) (int, error) {
	if p.jailer == "" {
		return -1, nil
	}
	mine := filepath.Join(rec.Dir(), "user")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		return 0, err
	}
	dir := filepath.Join(filepath.Dir(p.cfg.Journal.Dir), "firecracker-users")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return 0, err
	}
	for uid := p.cfg.UIDs[0]; uid < p.cfg.UIDs[0]+p.cfg.UIDs[1]; uid++ {
		path := filepath.Join(dir, strconv.Itoa(uid))
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == nil && st.Nlink > 1 {
			continue
		} else if err == nil {
			os.Remove(path)
		}
		return uid, os.Link(mine, path)
	}
	return 0, fmt.Errorf("all %d users for machines are taken", p.cfg.UIDs[1])
}
