package container

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The stage is a mount namespace that no process is in. In it, stageDir is a file system in memory that holds the agent
// and the image's root filesystem, mounted as the users of machines see it. A machine is started in a copy of the
// namespace, in which its own disk is mounted as well; when its processes have ended, its mounts have. Nothing of this is
// seen from the host, and nothing of it can be left there.
//
// The folder is one that every system has and everybody may pass through: the runtime enters it as the machine's user.
const (
	stageDir  = "/mnt"
	stageTree = stageDir + "/tree"  // the image's root filesystem
	stageDisk = stageDir + "/disk"  // where a machine's own disk is mounted
	stageRoot = stageDir + "/root"  // where both are put together
	stageSys  = stageDir + "/sys"   // sysfs, where a machine's network is not of its own making
	stageExec = stageDir + "/agent" // the agent's program
)

type stage struct {
	mu sync.Mutex
	ns *os.File // nil when it was closed
}

// newStage makes the stage for an image's root filesystem.
func newStage(root, agent string, ids [2]int) (*stage, error) {
	users, err := userNamespace(ids)
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer users.Close()
	var ns *os.File
	err = onThread(func() error {
		if err := leave(); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", stageDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", stageDir, err)
		}
		for _, dir := range []string{stageTree, stageDisk, stageRoot, stageSys} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := copyProgram(stageExec, agent); err != nil {
			return err
		}
		tree, err := openDisk(root, true)
		if err != nil {
			return err
		}
		defer unix.Close(tree)
		idmap := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &idmap); err != nil {
			return fmt.Errorf("map the users of %s: %w", root, err)
		}
		if err := attach(tree, stageTree); err != nil {
			return err
		}
		ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &stage{ns: ns}, nil
}

func (st *stage) close() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ns == nil {
		return nil
	}
	err := st.ns.Close()
	st.ns = nil
	return err
}

// parts are what a machine has of its own on the stage.
type parts struct {
	disk  string            // path of its ext4 file
	root  int               // who its root is on the host
	files map[string]string // contents by path, without the leading slash
	netns string            // path of its network namespace; "": the runtime makes one
}

// start starts cmd in a copy of the stage, with a machine's own parts.
func (st *stage) start(cmd *exec.Cmd, own parts) error {
	st.mu.Lock()
	if st.ns == nil {
		st.mu.Unlock()
		return errors.New("the provider was closed")
	}
	ns, err := unix.FcntlInt(st.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	st.mu.Unlock()
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	var netns *os.File
	if own.netns != "" { // opened here: where it is mounted is not seen from the stage
		if netns, err = os.Open(own.netns); err != nil {
			return err
		}
		defer netns.Close()
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the stage: %w", err)
		}
		if err := leave(); err != nil {
			return err
		}
		if err := mountMachine(own); err != nil {
			return err
		}
		if err := enterNetwork(netns); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// mountMachine puts the image and a machine's disk together, and writes the machine's own files.
func mountMachine(own parts) error {
	fd, err := openDisk(own.disk, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := attach(fd, stageDisk); err != nil {
		return err
	}
	upper, work := stageDisk+"/upper", stageDisk+"/work"
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755), os.Chown(upper, own.root, own.root)); err != nil {
		return err
	}
	for name, text := range own.files {
		path := filepath.Join(upper, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chown(filepath.Dir(path), own.root, own.root), os.Chown(path, own.root, own.root)); err != nil {
			return err
		}
	}
	options := "lowerdir=" + stageTree + ",upperdir=" + upper + ",workdir=" + work + ",redirect_dir=on,volatile"
	if err := unix.Mount("overlay", stageRoot, "overlay", unix.MS_NOATIME|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount the overlay: %w", err)
	}
	return nil
}

// enterNetwork takes the thread into a network namespace, which the runtime inherits, and mounts sysfs as it is seen
// from there: the machine's root, to whom the namespace does not belong, may not.
func enterNetwork(netns *os.File) error {
	if netns == nil {
		return nil
	}
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", netns.Name(), err)
	}
	if err := unix.Mount("sysfs", stageSys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return nil
}

// onThread runs fn on a thread of its own, which ends with it: what fn did to its thread nobody else gets to see.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- fn()
	}()
	return <-done
}

// leave takes the thread to a mount namespace of its own, from which nothing gets back.
func leave() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// openDisk mounts the ext4 file system in a file, nowhere yet. Its loop device goes with the mount.
func openDisk(path string, readOnly bool) (fd int, err error) {
	loop, err := openLoop(path, readOnly)
	if err != nil {
		return -1, fmt.Errorf("%s: loop device: %w", path, err)
	}
	defer loop.Close()
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%s: ext4: %w", path, err)
	}
	defer unix.Close(fs)
	attrs := unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOATIME
	err = unix.FsconfigSetString(fs, "source", loop.Name())
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
		err = errors.Join(err, unix.FsconfigSetFlag(fs, "ro"))
	} else {
		err = errors.Join(err, unix.FsconfigSetString(fs, "init_itable", "0"), unix.FsconfigSetFlag(fs, "noinit_itable"))
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err == nil {
		fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	}
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", path, err)
	}
	return fd, nil
}

// openLoop attaches a file to a free loop device, which lets go of it when nobody uses the device any more.
func openLoop(path string, readOnly bool) (*os.File, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	file, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 100 { // whoever is faster gets the free one
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: flags}})
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, errors.New("others are always faster")
}

// attach mounts what openDisk made.
func attach(fd int, dir string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	return nil
}

// userNamespace makes the namespace that says who the users of machines are on the host. A process has to be in it
// while it is opened.
func userNamespace(ids [2]int) (*os.File, error) {
	cmd := exec.Command("cat")
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: ids[0], Size: ids[1]}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	in.Close()
	return f, errors.Join(err, cmd.Wait())
}

func copyProgram(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
