package llamacpp

import (
	"errors"
	"fmt"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// loaded is the model and its context.
type loaded struct {
	model     llama.Model
	context   llama.Context
	memory    llama.Memory
	batch     llama.Batch
	vocab     *vocab
	whole     bool // a state that cannot be cut: recurrent and hybrid models
	recurrent bool // no KV cells at all
	gpuLayers int
	memoryErr error // the cache no longer is what the scheduler thinks
}

// loadLibraries loads llama.cpp and makes sure that it is the version whose structs the binding knows.
func loadLibraries(dir string) error {
	if err := llama.Load(dir); err != nil {
		return fmt.Errorf("load llama.cpp from %s: %w", dir, err)
	}
	// A struct of another shape would not fail but be misread: the defaults of fields at both ends and in the middle tell.
	c, m := llama.ContextDefaultParams(), llama.ModelDefaultParams()
	ok := c.NCtx == 512 && c.NBatch == 2048 && c.NUbatch == 512 && c.NSeqMax == 1 && c.NThreads == 4 &&
		c.FlashAttentionType == llama.FlashAttentionTypeAuto && c.YarnExtFactor == -1 && c.YarnOrigCtx == 0 &&
		c.TypeK == llama.GGMLTypeF16 && c.TypeV == llama.GGMLTypeF16 && c.Offload_kqv == 1 && c.NoPerf == 1 &&
		c.SwaFull == 1 && c.KVUnified == 0 && c.Samplers == 0 && c.NSamplers == 0 && c.CtxOther == 0 &&
		m.NGpuLayers == -1 && m.SplitMode == llama.SplitModeLayer && m.LoadMode == llama.LoadModeAuto &&
		m.LazyMode == llama.LazyModeAuto && m.ProgressCallback == 0 && m.VocabOnly == 0 && m.UseExtraBufts == 1 && m.LoadMTP == 0
	if !ok {
		return fmt.Errorf("the libraries in %s are of another llama.cpp version than this program was built for: run `make engine`", dir)
	}
	llama.BackendInit()
	return llama.GGMLBackendLoadAllFromPath(dir)
}

// gpuMemory is the free memory of all GPUs in bytes.
func gpuMemory() (free uint64) {
	for i := range llama.GGMLBackendDeviceCount() {
		d := llama.GGMLBackendDeviceGet(i)
		if t := llama.GGMLBackendDevType(d); t == llama.GGMLBackendDeviceTypeGPU || t == llama.GGMLBackendDeviceTypeIGPU {
			f, _ := llama.GGMLBackendDeviceMemory(d)
			free += f
		}
	}
	return free
}

// fittingLayers is how many layers, the output layer included, fit free bytes with their share of the KV cache. A tenth and
// half a gigabyte are left for the compute buffers.
func fittingLayers(free uint64, c childConfig) int {
	free -= min(free, free/10+512<<20)
	perLayer := (c.ModelBytes+c.KVBytesPerToken*uint64(c.CacheTokens))/uint64(c.Layers+1) + 1
	return int(min(free/perLayer, uint64(c.Layers+1)))
}

func load(c childConfig, progress func(float32)) (*loaded, error) {
	params := llama.ModelDefaultParams()
	layers := c.GPULayers
	if layers == AllLayers {
		layers = fittingLayers(gpuMemory(), c)
	}
	params.NGpuLayers = int32(layers)
	params.SetProgressCallback(func(p float32, _ uintptr) uint8 {
		progress(p)
		return 1
	})
	model, err := llama.ModelLoadFromFile(c.ModelPath, params)
	if err != nil {
		return nil, fmt.Errorf("load model %s: %w", c.ModelPath, err)
	}
	if !llama.ModelHasDecoder(model) || llama.ModelHasEncoder(model) || llama.ModelIsDiffusion(model) {
		return nil, fmt.Errorf("load model %s: it is not a decoder-only language model", c.ModelPath)
	}
	l := &loaded{model: model, vocab: newVocab(model), gpuLayers: layers, recurrent: llama.ModelIsRecurrent(model)}
	l.whole = c.WholeState || l.recurrent || llama.ModelIsHybrid(model)
	if l.vocab.size < 1 {
		return nil, errors.New("load model: it has no vocabulary")
	}
	p := llama.ContextDefaultParams()
	p.NCtx = uint32(c.CacheTokens)
	p.NBatch, p.NUbatch = uint32(c.BatchTokens), uint32(c.BatchTokens)
	p.NSeqMax = uint32(c.Sequences)
	p.NOutputsMax = uint32(c.Sequences) // logits are asked for at one position a sequence: the buffers stay small
	p.NThreads, p.NThreadsBatch = int32(c.Threads), int32(c.Threads)
	p.KVUnified = 1
	p.SwaFull = 1 // a sliding window's cache could not be forked behind the head
	kv := map[string]llama.GGMLType{"f16": llama.GGMLTypeF16, "q8_0": llama.GGMLTypeQ8_0, "f32": llama.GGMLTypeF32}[c.KVType]
	p.TypeK, p.TypeV = kv, kv
	p.FlashAttentionType = map[string]llama.FlashAttentionType{
		"auto": llama.FlashAttentionTypeAuto, "on": llama.FlashAttentionTypeEnabled, "off": llama.FlashAttentionTypeDisabled,
	}[c.FlashAttention]
	if l.context, err = llama.InitFromModel(model, p); err != nil {
		return nil, fmt.Errorf("make a context of %d tokens for %d sequences (is there memory for it?): %w", c.CacheTokens, c.Sequences, err)
	}
	if l.memory, err = llama.GetMemory(l.context); err != nil {
		return nil, err
	}
	l.batch = llama.BatchInit(int32(c.BatchTokens), 0, 1)
	return l, nil
}

// copyPrefix implements memory.
func (l *loaded) copyPrefix(from, to, n int) {
	end := llama.Pos(n)
	if l.whole {
		end = -1
	}
	if err := llama.MemorySeqCp(l.memory, llama.SeqId(from), llama.SeqId(to), 0, end); err != nil {
		l.memoryErr = err
	}
}

// truncate implements memory.
func (l *loaded) truncate(slot, n int) {
	if ok, err := llama.MemorySeqRm(l.memory, llama.SeqId(slot), llama.Pos(n), -1); err != nil {
		l.memoryErr = err
	} else if !ok {
		l.memoryErr = fmt.Errorf("llama.cpp did not cut slot %d to %d tokens", slot, n)
	}
}
