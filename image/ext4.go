package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

// writeExt4 makes a file system of the tree, to be read only: it has no room for more. The same tree gives the same bytes,
// and nothing of it needs root.
func (t *tree) writeExt4(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, w := io.Pipe()
	go func() {
		buf := bufio.NewWriterSize(w, 1<<20)
		w.CloseWithError(errors.Join(t.write(buf), buf.Flush()))
	}()
	err = tar2ext4.ConvertTarToExt4(bufio.NewReaderSize(r, 1<<20), f, tar2ext4.MaximumDiskSize(maxRootBytes))
	r.CloseWithError(errors.New("the file system was not made"))
	if err == nil {
		err = padBitmaps(f)
	}
	if err != nil {
		return fmt.Errorf("make the file system: %w", err)
	}
	return nil
}

// padBitmaps sets the bits that follow the last inode of each group, as e2fsck wants them and the library leaves undone.
// https://docs.kernel.org/filesystems/ext4/globals.html
func padBitmaps(f *os.File) error {
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return err
	}
	le := binary.LittleEndian
	blockSize := int64(1024) << le.Uint32(super[24:])
	perGroup, blocks, blocksPerGroup := le.Uint32(super[40:]), le.Uint32(super[4:]), le.Uint32(super[32:])
	if le.Uint16(super[56:]) != 0xef53 || blockSize > 64<<10 || blocksPerGroup == 0 || int64(perGroup) > blockSize*8 || le.Uint32(super[96:])&0x80 != 0 {
		return errors.New("the library made another kind of file system than expected")
	}
	const descriptor = 32 // without the 64-bit feature, which was ruled out above
	first := int64(le.Uint32(super[20:])) + 1
	for group := range (blocks + blocksPerGroup - 1) / blocksPerGroup {
		var d [descriptor]byte
		if _, err := f.ReadAt(d[:], first*blockSize+int64(group)*descriptor); err != nil {
			return err
		}
		at := int64(le.Uint32(d[4:])) * blockSize
		bitmap := make([]byte, blockSize)
		if _, err := f.ReadAt(bitmap, at); err != nil {
			return err
		}
		for bit := int(perGroup); bit < len(bitmap)*8; bit++ {
			bitmap[bit/8] |= 1 << (bit % 8)
		}
		if _, err := f.WriteAt(bitmap, at); err != nil {
			return err
		}
	}
	return nil
}
