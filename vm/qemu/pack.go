package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/terraphim/tgr/vm"
)

// A packed file is what a sparse file holds besides zeros: records of an offset and a length, both 64 bits,
// big-endian, with as many bytes, at most packChunk; the last record is the file's size with length 0. Offsets rise.
const (
	pageSize  = 4096
	packChunk = 256 * pageSize
	packHead  = 16
)

// pack writes f packed.
func pack(ctx context.Context, w io.Writer, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(w, packChunk)
	if err := vm.EachData(ctx, f, func(data []byte, at int64) error { return packPages(b, data, at) }); err != nil {
		return err
	}
	return errors.Join(packRecord(b, fi.Size(), nil), b.Flush())
}

var zeroPage [pageSize]byte

// packPages writes the runs of pages of b that are not zero; b begins at offset at.
func packPages(w io.Writer, b []byte, at int64) error {
	for begin := 0; begin < len(b); {
		zero := func(i int) bool {
			page := b[i:min(i+pageSize, len(b))]
			return bytes.Equal(page, zeroPage[:len(page)])
		}
		if zero(begin) {
			begin += pageSize
			continue
		}
		end := begin + pageSize
		for end < len(b) && !zero(end) {
			end += pageSize
		}
		end = min(end, len(b))
		if err := packRecord(w, at+int64(begin), b[begin:end]); err != nil {
			return err
		}
		begin = end
	}
	return nil
}

func packRecord(w io.Writer, at int64, b []byte) error {
	var head [packHead]byte
	binary.BigEndian.PutUint64(head[:], uint64(at))
	binary.BigEndian.PutUint64(head[8:], uint64(len(b)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

var errPacked = errors.New("not a packed file")

// unpack makes f, which is empty, the file that was packed, at most limit bytes long. It reads r to its end.
func unpack(f *os.File, r io.Reader, limit int64) error {
	var head [packHead]byte
	buf := make([]byte, packChunk)
	for last := uint64(0); ; {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return fmt.Errorf("%w: %w", errPacked, err)
		}
		at, n := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint64(head[8:])
		if at < last || at > uint64(limit) || n > packChunk || n > uint64(limit)-at {
			return fmt.Errorf("%w: %d bytes at %d", errPacked, n, at)
		}
		if n == 0 {
			if k, err := r.Read(head[:1]); k != 0 || !errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: more after its end (%w)", errPacked, err)
			}
			return f.Truncate(int64(at))
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return fmt.Errorf("%w: %w", errPacked, err)
		}
		if _, err := f.WriteAt(buf[:n], int64(at)); err != nil {
			return err
		}
		last = at + n
	}
}
