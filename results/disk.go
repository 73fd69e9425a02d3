package results

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Blobs keeps bytes by their BLAKE3 hash of 256 bits, in hexadecimal: twice as fast as SHA-256, and no easier to forge. What
// older servers kept has its SHA-256 for a name. Its methods are called concurrently. Put and Remove of one hash never
// overlap in a way that loses bytes: whoever calls them sees to it.
type Blobs interface {
	// Put keeps the bytes of a file of ours, which it may move away. Putting what is there already is no error.
	Put(ctx context.Context, hash, file string) error
	// Open returns n bytes from off on. An absent hash is fs.ErrNotExist, from Open or from the first Read. The caller
	// closes it.
	Open(ctx context.Context, hash string, off, n int64) (io.ReadCloser, error)
	// Has reports whether all bytes are there.
	Has(ctx context.Context, hash string, size int64) (bool, error)
	// Remove forgets a hash; one that is absent is no error.
	Remove(ctx context.Context, hash string) error
}

// disk keeps bytes in files of a folder.
type disk struct{ dir string }

func (d *disk) path(hash string) string { return filepath.Join(d.dir, hash[:2], hash[2:]) }

func (d *disk) Put(_ context.Context, hash, file string) error {
	err := os.Rename(file, d.path(hash))
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(d.path(hash)), 0o700); err == nil {
			err = os.Rename(file, d.path(hash))
		}
	}
	return err
}

func (d *disk) Open(_ context.Context, hash string, off, _ int64) (io.ReadCloser, error) {
	f, err := os.Open(d.path(hash))
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil // as it is: the kernel sends it by itself
}

func (d *disk) Has(_ context.Context, hash string, size int64) (bool, error) {
	info, err := os.Stat(d.path(hash))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Size() == size, err
}

func (d *disk) Remove(_ context.Context, hash string) error {
	err := os.Remove(d.path(hash))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
