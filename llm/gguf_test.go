package llm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// randomModel returns a model of the llama architecture in GGUF, version 3: half a megabyte of random weights over a
// vocabulary of bytes. Under a schema's grammar its answers are valid and always wrong, which makes it the adversary that a
// real model is on its worst day.
//
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
func randomModel(seed uint64) []byte {
	const width, layers, heads, hidden, context = 64, 2, 4, 128, 8192
	g := &gguf{rand: rand.New(rand.NewPCG(seed, 7))}
	words, kinds := []string{"<unk>", "<s>", "</s>"}, []int32{2, 3, 3}
	for b := range 256 {
		words, kinds = append(words, fmt.Sprintf("<0x%02X>", b)), append(kinds, 6)
	}
	for _, r := range "▁" + printable() {
		words, kinds = append(words, string(r)), append(kinds, 1)
	}
	scores := make([]float32, len(words))
	for i := range scores {
		scores[i] = -float32(i)
	}
	g.tensor("token_embd.weight", width, len(words))
	g.tensor("output_norm.weight", width)
	g.tensor("output.weight", width, len(words))
	for i := range layers {
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s.weight", i, s) }
		g.tensor(name("attn_norm"), width)
		g.tensor(name("ffn_norm"), width)
		for _, s := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			g.tensor(name(s), width, width)
		}
		g.tensor(name("ffn_gate"), width, hidden)
		g.tensor(name("ffn_up"), width, hidden)
		g.tensor(name("ffn_down"), hidden, width)
	}
	g.meta("general.architecture", "llama")
	g.meta("general.name", "random")
	for key, v := range map[string]uint32{"context_length": context, "embedding_length": width, "block_count": layers, "feed_forward_length": hidden,
		"attention.head_count": heads, "attention.head_count_kv": heads, "rope.dimension_count": width / heads, "vocab_size": uint32(len(words))} {
		g.meta("llama."+key, v)
	}
	g.meta("llama.attention.layer_norm_rms_epsilon", float32(1e-5))
	g.meta("tokenizer.ggml.model", "llama")
	g.meta("tokenizer.ggml.tokens", words)
	g.meta("tokenizer.ggml.scores", scores)
	g.meta("tokenizer.ggml.token_type", kinds)
	g.meta("tokenizer.ggml.bos_token_id", uint32(1))
	g.meta("tokenizer.ggml.eos_token_id", uint32(2))
	return g.bytes()
}

func printable() string {
	var b []rune
	for r := '!'; r <= '~'; r++ {
		b = append(b, r)
	}
	return string(b)
}

// gguf collects a file.
type gguf struct {
	rand              *rand.Rand
	head, infos, data bytes.Buffer
	metas, tensors    uint64
}

func put(b *bytes.Buffer, vs ...any) {
	for _, v := range vs {
		if s, ok := v.(string); ok {
			put(b, uint64(len(s)), []byte(s))
			continue
		}
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err) // fixed sizes into memory: cannot be
		}
	}
}

// The types of values, by GGUF's numbers.
const typeU32, typeI32, typeF32, typeString, typeArray = 4, 5, 6, 8, 9

func (g *gguf) meta(key string, value any) {
	g.metas++
	put(&g.head, key)
	switch v := value.(type) {
	case uint32:
		put(&g.head, uint32(typeU32), v)
	case float32:
		put(&g.head, uint32(typeF32), v)
	case string:
		put(&g.head, uint32(typeString), v)
	case []string:
		put(&g.head, uint32(typeArray), uint32(typeString), uint64(len(v)))
		for _, s := range v {
			put(&g.head, s)
		}
	case []float32:
		put(&g.head, uint32(typeArray), uint32(typeF32), uint64(len(v)), v)
	case []int32:
		put(&g.head, uint32(typeArray), uint32(typeI32), uint64(len(v)), v)
	}
}

// tensor adds random weights; one dimension is a norm, which is all ones.
func (g *gguf) tensor(name string, dims ...int) {
	g.tensors++
	put(&g.infos, name, uint32(len(dims)))
	n := 1
	for _, d := range dims {
		put(&g.infos, uint64(d))
		n *= d
	}
	put(&g.infos, uint32(0), uint64(g.data.Len())) // F32
	for range n {
		w := float32(1)
		if len(dims) > 1 {
			w = float32(g.rand.NormFloat64() * 0.2)
		}
		put(&g.data, w)
	}
	pad(&g.data)
}

func pad(b *bytes.Buffer) {
	for b.Len()%32 != 0 {
		b.WriteByte(0)
	}
}

func (g *gguf) bytes() []byte {
	var out bytes.Buffer
	out.WriteString("GGUF")
	put(&out, uint32(3), g.tensors, g.metas, g.head.Bytes(), g.infos.Bytes())
	pad(&out)
	out.Write(g.data.Bytes())
	return out.Bytes()
}
