package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// sparseChunk is how much of a sparse file is read at once, in bytes.
const sparseChunk = 1 << 20

// CopySparse makes the file dst, which must not exist, a copy of src: by reference where the file system can, otherwise
// of what is not a hole. After an error, also the end of ctx, there is no dst, unless there was one before.
func CopySparse(ctx context.Context, dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			os.Remove(dst)
		}
	}()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	info, err := in.Stat()
	if err == nil {
		err = out.Truncate(info.Size())
	}
	if err != nil {
		return err
	}
	return CopyData(ctx, out, in)
}

// CopyData copies what of src is not a hole to its place in dst. What dst holds elsewhere stays.
func CopyData(ctx context.Context, dst, src *os.File) error {
	return EachData(ctx, src, func(b []byte, at int64) error {
		_, err := dst.WriteAt(b, at)
		return err
	})
}

// EachData calls fn for what of f is not a hole, in pieces of at most 1 MiB that are valid until fn returns, with their
// place in the file. It moves the file's offset: one at a time.
func EachData(ctx context.Context, f *os.File, fn func(b []byte, at int64) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, sparseChunk)
	for pos := int64(0); pos < info.Size(); {
		start, err := f.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole up to the end
			return nil
		} else if err != nil {
			return err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for pos = start; pos < end; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b := buf[:min(int64(len(buf)), end-pos)]
			if _, err := f.ReadAt(b, pos); err != nil {
				return fmt.Errorf("%s: %d bytes at %d: %w", f.Name(), len(b), pos, err)
			}
			if err := fn(b, pos); err != nil {
				return err
			}
			pos += int64(len(b))
		}
	}
	return nil
}

// Allocated is what a file, or all files below a folder, take on the host, in bytes: holes count nothing. What is not
// there counts nothing either.
func Allocated(path string) (sum int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				sum += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}
