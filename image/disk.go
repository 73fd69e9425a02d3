package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/terraphim/tgr/vm"
)

// The bounds of a writable disk in bytes.
const (
	MinOverlay = 64 << 20
	MaxOverlay = 1 << 40
)

const tmpSuffix = ".tmp"

// blankDisks is the folder of the blank disks. No image can have this name.
const blankDisks = ".blank"

// OverlayTemplate returns the path of a blank ext4 disk of size bytes (rounded up to a MiB), which it makes on
// first use: a sparse file of some hundred KiB. It must not be written to; CloneOverlay copies it.
func (im *Image) OverlayTemplate(ctx context.Context, size int64) (string, error) {
	if size < MinOverlay || size > MaxOverlay {
		return "", fmt.Errorf("image: a disk of %d bytes: want %d to %d", size, int64(MinOverlay), int64(MaxOverlay))
	}
	mib := (size + 1<<20 - 1) >> 20
	root, err := im.store.dir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, blankDisks)
	path := filepath.Join(dir, strconv.FormatInt(mib, 10)+"m.ext4")
	if fi, err := os.Stat(path); err == nil && fi.Size() == mib<<20 {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	unlock, err := vm.LockFile(ctx, path+".lock")
	if err != nil {
		return "", fmt.Errorf("image: blank disk: %w", err)
	}
	defer unlock()
	if fi, err := os.Stat(path); err == nil && fi.Size() == mib<<20 {
		return path, nil
	}
	if err := makeOverlay(ctx, path, mib<<20); err != nil {
		return "", fmt.Errorf("image: blank disk of %d MiB: %w", mib, err)
	}
	return path, nil
}

// makeOverlay formats a sparse file. It has no journal: the disk does not outlive its machine.
func makeOverlay(ctx context.Context, path string, size int64) error {
	tmp := path + tmpSuffix
	os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-L", "tgr-overlay", "-m", "0", "-i", "16384",
		"-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", tmp)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return os.Rename(tmp, path)
}

// CloneOverlay makes a blank writable disk of size bytes at dst, which must not exist, in milliseconds.
func (im *Image) CloneOverlay(ctx context.Context, dst string, size int64) error {
	src, err := im.OverlayTemplate(ctx, size)
	if err != nil {
		return err
	}
	if err := vm.CopySparse(ctx, dst, src); err != nil {
		return fmt.Errorf("image: blank disk: %w", err)
	}
	return nil
}
