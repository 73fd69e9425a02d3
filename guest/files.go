package guest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSkipped bounds the list of what was left out.
const maxSkipped = 100

// unpack is the agent's part of Put. What it makes belongs to the owner of the folder that it is made in, where
// the agent may see to that.
func unpack(dir string, r io.Reader) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("folder %q: %w: want an absolute path", dir, ErrRefused)
	}
	u := &unpacker{owner: ownerOf(dir)}
	if err := u.mkdirs(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u.root = root
	if u.dir, err = root.Open("."); err != nil {
		return err
	}
	defer u.dir.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("tar: %w", err)
		}
		if err := u.entry(h, t); err != nil {
			return escaped(err)
		}
	}
	// Folders last, the deepest first: one may be read-only, and its time changes with what is put into it.
	for _, h := range slices.Backward(u.folders) {
		if err := u.attributes(path.Clean(h.Name), h); err != nil {
			return escaped(err)
		}
	}
	// Bytes behind the end of the archive are padding.
	_, err = io.Copy(io.Discard, r)
	return err
}

// escaped marks the error of a path that leads out of its root.
func escaped(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	if errors.As(err, &p) && strings.Contains(p.Err.Error(), "escapes") || errors.As(err, &l) && strings.Contains(l.Err.Error(), "escapes") {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

type owner struct{ uid, gid int }

// ownerOf returns the owner of the nearest folder on the way to dir that exists, nil where it is us anyway.
func ownerOf(dir string) *owner {
	if os.Geteuid() != 0 {
		return nil
	}
	for {
		if info, err := os.Stat(dir); err == nil {
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok || st.Uid == 0 && st.Gid == 0 {
				return nil
			}
			return &owner{int(st.Uid), int(st.Gid)}
		}
		if dir == "/" {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

type unpacker struct {
	root    *os.Root
	dir     *os.File // the root itself
	owner   *owner
	folders []*tar.Header
}

// mkdirs makes dir and what is missing on the way to it.
func (u *unpacker) mkdirs(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := u.mkdirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755) // again at most once: in /proc, and below a link to nowhere, nothing can be made
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil // a file here fails in OpenRoot
	case err == nil && u.owner != nil:
		return os.Lchown(dir, u.owner.uid, u.owner.gid)
	}
	return err
}

// entry unpacks one entry of the tar.
func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	if h.Name == "" || path.IsAbs(h.Name) || slices.Contains(strings.Split(h.Name, "/"), "..") || strings.ContainsRune(h.Name, 0) {
		return fmt.Errorf("tar: entry %q: %w: the name leads out of the folder", clip(h.Name, 256), ErrRefused)
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		u.folders = append(u.folders, h)
		if name == "." {
			return nil
		}
		return u.replace(name, func() error {
			if info, err := u.root.Lstat(name); err == nil && info.IsDir() {
				return nil
			}
			return u.root.Mkdir(name, 0o755)
		})
	case tar.TypeReg:
		// A sparse file may say that it is of any size, and the reader would make it so.
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return fmt.Errorf("tar: entry %q: %w: a sparse file", clip(name, 256), ErrRefused)
			}
		}
		return u.replace(name, func() error { return u.file(name, h, r) })
	case tar.TypeSymlink:
		if err := u.replace(name, func() error { return u.root.Symlink(h.Linkname, name) }); err != nil {
			return err
		}
		if u.owner != nil {
			if err := u.root.Lchown(name, u.owner.uid, u.owner.gid); err != nil {
				return err
			}
		}
		return u.linkTime(name, h)
	case tar.TypeLink:
		if path.IsAbs(h.Linkname) || slices.Contains(strings.Split(h.Linkname, "/"), "..") {
			return fmt.Errorf("tar: hard link %q to %q: %w: it leads out of the folder", clip(name, 256), clip(h.Linkname, 256), ErrRefused)
		}
		return u.replace(name, func() error { return u.root.Link(path.Clean(h.Linkname), name) })
	default:
		return fmt.Errorf("tar: entry %q: %w: neither file, folder nor link (type %q)", clip(name, 256), ErrRefused, h.Typeflag)
	}
}

// replace makes an entry, where need be with the folders that lead to it and in the place of a file.
func (u *unpacker) replace(name string, create func() error) error {
	err := create()
	if errors.Is(err, fs.ErrNotExist) {
		if err := u.parents(path.Dir(name)); err != nil {
			return err
		}
		err = create()
	}
	if errors.Is(err, fs.ErrExist) {
		if err := u.root.Remove(name); err != nil {
			return err
		}
		err = create()
	}
	return err
}

// parents is mkdirs within the root.
func (u *unpacker) parents(dir string) error {
	if dir == "." {
		return nil
	}
	err := u.root.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := u.parents(path.Dir(dir)); err != nil {
			return err
		}
		err = u.root.Mkdir(dir, 0o755)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil // a file here, or a link that leads nowhere, fails in create
	case err == nil && u.owner != nil:
		return u.root.Lchown(dir, u.owner.uid, u.owner.gid)
	}
	return err
}

func (u *unpacker) file(name string, h *tar.Header, r io.Reader) error {
	f, err := u.create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if h.Size > 0 {
		if _, err := io.Copy(f, r); err != nil {
			return fmt.Errorf("tar: entry %q: %w", clip(name, 256), err)
		}
	}
	if u.owner != nil {
		if err := f.Chown(u.owner.uid, u.owner.gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(modeOf(h)); err != nil {
		return err
	}
	if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 {
		tv := []unix.Timeval{unix.NsecToTimeval(h.ModTime.UnixNano()), unix.NsecToTimeval(h.ModTime.UnixNano())}
		if err := unix.Futimes(int(f.Fd()), tv); err != nil {
			return fmt.Errorf("tar: time of %q: %w", clip(name, 256), err)
		}
	}
	return f.Close()
}

// create makes a file. O_EXCL: neither through a link that is there nor into a file that has other names.
func (u *unpacker) create(name string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if strings.Contains(name, "/") {
		return u.root.OpenFile(name, flags, 0o600)
	}
	// What leads nowhere needs no walk, and no file of a folder needs Go's questions, five system calls, whether it can be
	// polled: a step has eight of them.
	for {
		fd, err := unix.Openat(int(u.dir.Fd()), name, flags|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case err != unix.EINTR:
			return nil, &fs.PathError{Op: "openat", Path: name, Err: err}
		}
	}
}

// linkTime gives a symbolic link its own time: git takes one that differs from its index for a change.
func (u *unpacker) linkTime(name string, h *tar.Header) error {
	if h.ModTime.IsZero() || h.ModTime.Unix() == 0 {
		return nil
	}
	dir, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	err = unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("tar: time of %q: %w", clip(name, 256), err)
	}
	return nil
}

// attributes gives a folder its owner, mode and time.
func (u *unpacker) attributes(name string, h *tar.Header) error {
	if u.owner != nil {
		if err := u.root.Lchown(name, u.owner.uid, u.owner.gid); err != nil {
			return err
		}
	}
	if err := u.root.Chmod(name, modeOf(h)); err != nil {
		return err
	}
	if h.ModTime.IsZero() || h.ModTime.Unix() == 0 {
		return nil
	}
	return u.root.Chtimes(name, time.Now(), h.ModTime)
}

func modeOf(h *tar.Header) fs.FileMode {
	return h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// pack is the agent's part of Get. It returns what it left out.
func pack(name string, w io.Writer) (skipped []string, err error) {
	if !filepath.IsAbs(name) {
		return nil, fmt.Errorf("path %q: %w: want an absolute one", name, ErrRefused)
	}
	info, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	p := &packer{tar: tar.NewWriter(w), links: map[inode]string{}}
	if info.IsDir() {
		if p.root, err = os.OpenRoot(name); err != nil {
			return nil, err
		}
		defer p.root.Close()
		err = p.folder(".", info)
	} else {
		if p.root, err = os.OpenRoot(filepath.Dir(name)); err != nil {
			return nil, err
		}
		defer p.root.Close()
		err = p.entry(filepath.Base(name), info)
	}
	if err != nil {
		return nil, err
	}
	return p.skipped, p.tar.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	root    *os.Root
	tar     *tar.Writer
	links   map[inode]string // files with several names that are in the tar
	skipped []string
}

func (p *packer) skip(name, why string) {
	if len(p.skipped) < maxSkipped {
		p.skipped = append(p.skipped, clip(name, 256)+": "+why)
	}
}

// folder packs a folder and what is in it, by name.
func (p *packer) folder(name string, info fs.FileInfo) error {
	if err := p.header(name+"/", info, tar.TypeDir, ""); err != nil {
		return err
	}
	d, err := p.root.Open(name)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		n = path.Join(name, n)
		info, err := p.root.Lstat(n)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			p.skip(n, "vanished")
		case err != nil:
			return err
		case info.IsDir():
			err = p.folder(n, info)
		default:
			err = p.entry(n, info)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// entry packs what is not a folder.
func (p *packer) entry(name string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case 0:
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Size == 0 && st.Nlink == 1 {
			return p.header(name, info, tar.TypeReg, "") // there is nothing to open it for
		}
		return p.file(name)
	case fs.ModeSymlink:
		target, err := p.root.Readlink(name)
		if err != nil {
			return err
		}
		return p.header(name, info, tar.TypeSymlink, target)
	default:
		p.skip(name, "neither file, folder nor link")
		return nil
	}
}

func (p *packer) file(name string) error {
	// O_NONBLOCK: a pipe that has taken the file's place must not hang us.
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return escaped(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		p.skip(name, "changed while it was read")
		return nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := p.links[id]; ok {
			return p.header(name, info, tar.TypeLink, first)
		}
		p.links[id] = name
	}
	if err := p.header(name, info, tar.TypeReg, ""); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(f, info.Size()))
	if err != nil {
		return err
	}
	if n < info.Size() {
		p.skip(name, "shrank while it was read; the rest is zeros")
		_, err = io.CopyN(p.tar, zeros{}, info.Size()-n)
	}
	return err
}

func (p *packer) header(name string, info fs.FileInfo, kind byte, target string) error {
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	// Owners are the guest's affair.
	h.Name, h.Typeflag, h.Linkname = name, kind, target
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Format = tar.FormatPAX // keeps the fractions of a second
	if kind == tar.TypeLink {
		h.Size = 0
	}
	return p.tar.WriteHeader(h)
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
