// The library from C++: handles in unique_ptr, statuses as exceptions. These few lines are all a wrapper needs.
//
//   c++ -std=c++17 cpp_raii.cc $(pkg-config --cflags --libs dartquant) -o cpp_raii
//   ./cpp_raii MODEL TEXT.txt
//
// SPDX-License-Identifier: Apache-2.0
#include <dartquant.h>

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace dq
{

void check(dq_status status)
{
    if (status != DQ_OK) throw std::runtime_error(std::string(dq_status_name(status)) + ": " + dq_error_text());
}

template <typename T, void (*Free)(T *)> struct Deleter {
    void operator()(T *p) const { Free(p); }
};
template <typename T, void (*Free)(T *)> using Handle = std::unique_ptr<T, Deleter<T, Free>>;

using Config = Handle<dq_config, dq_config_free>;
using Context = Handle<dq_context, dq_context_free>;
using Model = Handle<dq_model, dq_model_free>;
using Tokenizer = Handle<dq_tokenizer, dq_tokenizer_free>;
using Dataset = Handle<dq_dataset, dq_dataset_free>;
using Quantizer = Handle<dq_quantizer, dq_quantizer_free>;
using Evaluator = Handle<dq_evaluator, dq_evaluator_free>;

// make<Model>(dq_model_open, ctx.get(), path): the last parameter of every maker is the handle.
template <typename H, typename Maker, typename... Args> H make(Maker maker, Args... args)
{
    typename H::pointer p = nullptr;
    check(maker(args..., &p));
    return H(p);
}

double perplexity(dq_model *model, const dq_config *config, const dq_dataset *text)
{
    auto evaluator = make<Evaluator>(dq_evaluator_new, model, config);
    double ppl = 0;
    check(dq_evaluator_bind(evaluator.get(), text));
    check(dq_evaluator_run(evaluator.get(), nullptr, nullptr, nullptr));
    check(dq_evaluator_get_float(evaluator.get(), "ppl", &ppl));
    return ppl;
}

} // namespace dq

int main(int argc, char **argv)
try {
    if (argc < 3) {
        std::cerr << "usage: " << argv[0] << " MODEL TEXT.txt\n";
        return 2;
    }
    auto config = dq::make<dq::Config>(dq_config_new);
    dq::check(dq_config_apply_preset(config.get(), "w8a16"));
    dq::check(dq_config_set(config.get(), "seqlen", "64"));
    auto ctx = dq::make<dq::Context>(dq_context_new, config.get(), nullptr);
    auto model = dq::make<dq::Model>(dq_model_open, ctx.get(), argv[1]);
    auto tokenizer = dq::make<dq::Tokenizer>(dq_tokenizer_open, ctx.get(), argv[1]);
    auto text = dq::make<dq::Dataset>(dq_dataset_from_file, tokenizer.get(), argv[2]);
    auto job = dq::make<dq::Quantizer>(dq_quantizer_new, model.get(), config.get());
    dq::check(dq_quantizer_run(job.get(), nullptr, nullptr, nullptr));
    auto quantized = dq::make<dq::Model>(dq_quantizer_take_model, job.get());
    std::cout << "perplexity " << dq::perplexity(model.get(), config.get(), text.get()) << " -> "
              << dq::perplexity(quantized.get(), config.get(), text.get()) << "\n";
    return 0;
} catch (const std::exception &e) {
    std::cerr << "failed: " << e.what() << "\n";
    return 1;
}
